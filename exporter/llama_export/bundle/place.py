"""Make a file stand in a second place without moving its bytes, where the file system can."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

try:
    import fcntl
except ImportError:  # no reflinks on Windows
    fcntl = None  # type: ignore[assignment]

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)


def place_file(source: Path, target: Path) -> str:
    """Put a file's contents at ``target``: as a reflink, else a hard link, else a byte copy.

    A hard link shares the source's inode: its mode is the source's and must never be changed.

    Args:
        source: The file; a symlink is resolved first, since a link to it would dangle when moved.
        target: Must not exist.

    Returns:
        ``"reflink"``, ``"hard link"`` or ``"copy"``.
    """
    source = source.resolve()
    if _reflink(source, target):
        return "reflink"
    with contextlib.suppress(OSError):
        os.link(source, target)
        return "hard link"
    shutil.copyfile(source, target)
    return "copy"


def can_share(source: Path, folder: Path) -> bool:
    """Whether a file can be placed in a folder, which need not exist yet, without a copy of its bytes."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return source.stat().st_dev == existing.stat().st_dev


def _reflink(source: Path, target: Path) -> bool:
    """Share the source's blocks copy-on-write; False where the file system cannot."""
    if fcntl is None:
        return False
    with source.open("rb") as reader, target.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
            return True
        except OSError as error:
            refused = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM)
            if error.errno not in refused:
                raise
    target.unlink()
    return False
