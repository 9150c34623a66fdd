"""A folder beside the target that becomes the target in one rename, or leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from llama_export.errors import BundleError
from llama_export.interruption import undo_if_killed
from llama_runtime.manifest import FORMAT, MANIFEST_NAME

try:
    import fcntl
except ImportError:  # no locks on Windows: an abandoned stage stays until somebody removes it
    fcntl = None  # type: ignore[assignment]

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
        what = "a file" if target.exists() else "a link into nowhere"
        raise BundleError(f"{target}: is {what}, the output must be a folder", "name another output")
    # Publishing swaps the folder itself: a mount cannot be moved, and a shell would stay in the old one.
    if os.path.ismount(target) or target.resolve() == Path.cwd():
        what = "a mount point" if os.path.ismount(target) else "the current folder"
        raise BundleError(
            f"{target}: is {what}, which cannot be replaced by a bundle",
            f"name a folder in it, such as {target / 'bundle'}",
        )
    if not any(target.iterdir()):
        return
    weights = bundle_weights(target)
    if weights is None:
        raise BundleError(
            f"{target}: exists and is not a bundle, only a bundle may be replaced", "name another output"
        )
    if weights == "beside":
        raise BundleError(
            f"{target}: is a checkpoint with its bundle beside, replacing it would delete the checkpoint",
            "name another output",
        )
    if not force:
        raise BundleError(f"{target}: is a bundle already", "add --force to replace it as a whole")


def bundle_weights(folder: Path) -> str | None:
    """How a folder's manifest says that its weights are kept; None where it is no bundle of ours.

    Other programs have a ``manifest.json`` too, so its name alone proves nothing.
    """
    try:
        document = json.loads((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None
    return str(document.get("weights"))


class Stage:
    """The folder in which a bundle is put together.

    As a context manager it removes itself unless ``publish`` or ``keep_failed`` was called, and a signal
    removes it too. What an export that was killed outright left behind is removed by the next one to the
    same target.

    Args:
        target: Where the bundle will stand; a link is followed.
        nbytes: How much will be written; too little free space is refused before any work.

    Raises:
        BundleError: No space, or the parent folder cannot be written.
    """

    def __init__(self, target: Path, nbytes: int) -> None:
        self.target = target.resolve()
        parent = self.target.parent
        prefix = f".{self.target.name}.staging-"
        self.folder = parent / (prefix + secrets.token_hex(4))
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        # Before there is a folder, since a signal may come as soon as there is one.
        self._call_off = undo_if_killed(self._remove)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(parent, prefix)
            self._check_space(nbytes)
            self.folder.mkdir()
            self._lock = _lock(self.folder)
        except BaseException as error:
            self._remove()
            self._call_off()
            if not isinstance(error, OSError):
                raise
            raise BundleError(
                f"{parent}: cannot be written ({error.strerror})", "name another output"
            ) from None

    def _check_space(self, nbytes: int) -> None:
        free = shutil.disk_usage(self.target.parent).free
        if free < nbytes:
            raise BundleError(
                f"{self.target.parent}: {free / 2**30:.1f} GiB free, "
                f"the output needs {nbytes / 2**30:.1f} GiB",
                "free some space, name an output elsewhere, or link the weights (onnx --weights link)",
            )

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
        self._call_off()
        if self._lock is not None:
            os.close(self._lock)
        if isinstance(error, OSError) and error.errno is not None:
            named = error.filename if isinstance(error.filename, str) else None
            where = self.target if named is None or named.startswith(str(self.folder)) else named
            raise BundleError(
                f"{where}: cannot be read or written ({error.strerror})",
                "nothing was left behind; free some space or name another output",
            ) from error

    def publish(self) -> None:
        """Make everything durable, then put the folder in the target's place in one step."""
        for path in [*self.folder.rglob("*"), self.folder]:
            fsync(path)
        if self.target.exists():
            _exchange(self.folder, self.target)
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self.folder.rename(self.target)
        fsync(self.target.parent)

    def keep_failed(self) -> Path:
        """Move the stage to ``<name>.failed``, where it can be looked at but is nobody's bundle."""
        failed = self.target.with_name(self.target.name + ".failed")
        if bundle_weights(failed) is not None:
            shutil.rmtree(failed)
        if failed.exists():  # somebody else's
            failed = Path(tempfile.mkdtemp(prefix=failed.name + "-", dir=failed.parent))
        self.folder.rename(failed)
        return failed

    def _remove(self) -> None:
        """Remove the folder, and the parents that were made for it unless something else stands in them."""
        # Under another name first: a thread that still writes into it finds nothing there.
        gone = self.folder.with_name(self.folder.name + ".gone")
        with contextlib.suppress(OSError):
            self.folder.rename(gone)
        for folder in (gone, self.folder):  # the second where a system does not rename what is open
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()


def _lock(folder: Path) -> int | None:
    """Hold a folder for as long as this process lives; None where another process does, or nobody can."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the stages of exports that were killed: nobody holds them any more."""
    for folder in parent.iterdir():
        if folder.name.startswith(prefix) and (lock := _lock(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def fsync(path: Path) -> None:
    """Make a file's or folder's contents durable."""
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
