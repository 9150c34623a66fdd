"""A folder beside the target that becomes the target in one rename, or leaves nothing behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from llama_export.errors import BundleError

MANIFEST = "manifest.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that must not be replaced, before any work.

    Args:
        target: Where the bundle will stand.
        force: Whether an existing bundle may be replaced.

    Raises:
        BundleError: Something else stands there, or a bundle and ``force`` is not given.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise BundleError(f"{target}: is a file, the output must be a folder", "name another output")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise BundleError(
            f"{target}: exists and is not a bundle, only a bundle may be replaced",
            "name another output folder",
        )
    if not force:
        raise BundleError(f"{target}: is a bundle already", "add --force to replace it as a whole")


class Stage:
    """The folder in which a bundle is put together.

    As a context manager it removes itself unless ``publish`` or ``keep_failed`` was called.

    Args:
        target: Where the bundle will stand.
        nbytes: How much will be written; too little free space is refused before any work.

    Raises:
        BundleError: No space, or the parent folder cannot be written.
    """

    def __init__(self, target: Path, nbytes: int) -> None:
        self.target = target.absolute()
        parent = self.target.parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(parent).free
            if free < nbytes:
                raise BundleError(
                    f"{parent}: {free / 2**30:.1f} GiB free, the bundle needs {nbytes / 2**30:.1f} GiB",
                    "free some space, name an output elsewhere, or link the weights (--weights link)",
                )
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.staging-", dir=parent))
            # mkdtemp keeps the folder private; a bundle is for everybody that the umask allows.
            self.folder.chmod(0o777 & ~_umask())
        except OSError as error:
            raise BundleError(
                f"{parent}: cannot be written ({error.strerror})", "name another output"
            ) from None

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise BundleError(
                f"{self.target}: cannot be written ({error.strerror})",
                "nothing was left behind; free space or name another output",
            ) from error

    def publish(self) -> None:
        """Make everything durable, then put the folder in the target's place in one step."""
        for path in [*self.folder.rglob("*"), self.folder]:
            _fsync(path)
        if self.target.exists():
            _exchange(self.folder, self.target)
            shutil.rmtree(self.folder)
        else:
            self.folder.rename(self.target)
        _fsync(self.target.parent)

    def keep_failed(self) -> Path:
        """Move the stage to ``<name>.failed``, where it can be looked at but is nobody's bundle."""
        failed = self.target.with_name(self.target.name + ".failed")
        if failed.exists():
            shutil.rmtree(failed)
        self.folder.rename(failed)
        return failed


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(stage: Path, target: Path) -> None:
    """Swap two folders atomically; a plain rename cannot replace a folder that is not empty."""
    libc = ctypes.CDLL(None, use_errno=True)
    swapped = hasattr(libc, "renameat2") and not libc.renameat2(
        _AT_FDCWD, os.fsencode(stage), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE
    )
    if not swapped:
        aside = target.with_name(f".{target.name}.replaced-{os.getpid()}")
        target.rename(aside)
        stage.rename(target)
        aside.rename(stage)
