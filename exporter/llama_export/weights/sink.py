"""A data file, hashed on the way to the disk, and past the page cache where the file system lets us.

A bundle is on the disk before it is published, so the cache could only defer the work, and what it costs is
not small: on a virtual machine, 4 GiB took 1.2 s and 0.5 processor seconds past it, 11 s and 9 through it
(benchmarks/LOG.md). Such writes need memory and places in the file that are aligned: whole blocks.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama_export.weights.background import IN_FLIGHT, InBackground

BLOCK_BYTES = 4 << 20
_DIRECT: int = getattr(os, "O_DIRECT", 0)  # Linux
_NEW_FILE: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class FileDigest:
    """Size and SHA-256 of one whole file."""

    size_bytes: int
    sha256: str


class Sink:
    """A data file written front to back; gaps for alignment are zeros.

    Args:
        path: The file, made anew.
        header: What it begins with.
        disk: Writes the blocks, while the next one is filled.
    """

    def __init__(self, path: Path, header: bytes, disk: InBackground) -> None:
        self._file = _create(path)
        self._disk = disk
        self._hash = hashlib.sha256()
        self._end = 0
        self._blocks: list[mmap.mmap] = []  # the last one is being filled
        self._filled = 0
        self._tensor = ""
        self._append(memoryview(header))

    def write(self, offset: int, tensor_name: str, values: Tensor) -> None:
        """Append a piece; the first piece of a tensor goes to the tensor's offset."""
        if tensor_name != self._tensor:
            self._append(memoryview(bytes(offset - self._end)))
            self._tensor = tensor_name
        self._append(memory(values))

    def flush(self) -> None:
        """Have the last, unfinished block written; what follows goes through the page cache."""
        if self._filled:
            self._disk.submit(_through_the_cache, self._file)
            self._disk.submit(write_all, self._file, memoryview(self._blocks[-1])[: self._filled])
        self._blocks = []
        self._filled = 0

    def digest(self) -> FileDigest:
        """Of all that was appended."""
        return FileDigest(self._end, self._hash.hexdigest())

    def close(self) -> None:
        """Give the file back; ``disk`` must have done its work."""
        os.close(self._file)

    def _append(self, data: memoryview) -> None:
        self._hash.update(data)
        self._end += len(data)
        while len(data):
            block = self._block()
            taken = min(len(data), BLOCK_BYTES - self._filled)
            block[self._filled : self._filled + taken] = data[:taken]
            self._filled += taken
            data = data[taken:]
            if self._filled == BLOCK_BYTES:
                self._disk.submit(write_all, self._file, memoryview(block))
                self._filled = 0
                self._blocks.insert(0, self._blocks.pop())

    def _block(self) -> mmap.mmap:
        """The block to fill: behind those in flight comes one that has been written, or a new one."""
        if self._filled == 0 and len(self._blocks) <= IN_FLIGHT:
            self._blocks.append(mmap.mmap(-1, BLOCK_BYTES))  # a mapping is aligned to a page
        return self._blocks[-1]


def write_all(file: int, data: memoryview) -> None:
    """Write at the file's end; through the page cache where the file system wants that after all."""
    done = 0
    while done < len(data):
        try:
            done += os.write(file, data[done:])
        except OSError as error:
            if error.errno != errno.EINVAL or not _through_the_cache(file):
                raise


def memory(values: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, not copied."""
    return memoryview(values.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _create(path: Path) -> int:
    try:
        return os.open(path, _NEW_FILE | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(path, _NEW_FILE, 0o666)


def _through_the_cache(file: int) -> bool:
    """From now on; returns whether that changes anything."""
    if not _DIRECT:
        return False
    import fcntl

    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~_DIRECT)
    return bool(flags & _DIRECT)
