"""One pass over the checkpoint's bytes: hash, check, cast, write; never more than a few pieces in memory."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from llama_export.checkpoint import Checkpoint, nonfinite
from llama_export.checkpoint.tensor import PIECE_BYTES, read_bytes
from llama_export.errors import CheckpointError, OptionError
from llama_export.weights.plan import WeightPlan

_PIECES_IN_FLIGHT = 3
_SYNC_BYTES = 128 << 20

Advance = Callable[[int], None]


@dataclass(frozen=True)
class FileDigest:
    """Size and SHA-256 of one whole file."""

    size_bytes: int
    sha256: str


def write_weights(
    checkpoint: Checkpoint, plan: WeightPlan, folder: Path, advance: Advance
) -> tuple[dict[Path, FileDigest], dict[str, FileDigest]]:
    """Read every byte of the checkpoint, hash the files, refuse bad values and write what the plan writes.

    A byte is read once, unless the files of a computed tensor hold their tensors in different orders.

    Args:
        checkpoint: The source.
        plan: Where the weights go; linked ones are only read.
        folder: Where the data files are written.
        advance: Called with the number of source bytes done, for progress.

    Returns:
        The digest of each source file, and of each data file that was written, by location.

    Raises:
        CheckpointError: A weight is NaN or infinite, or a file cannot be read.
        OptionError: A value does not fit float16.
    """
    written = [location for location, file in plan.data_files.items() if file is None]
    with _InBackground() as hasher, _InBackground() as writer, _InBackground() as syncer:
        source = _HashedFiles(checkpoint.weight_files, hasher, advance)
        sinks = {name: _Sink(folder / name, plan.headers.get(name, b""), syncer) for name in written}
        try:
            for name, placed in plan.weights.items():
                sink = sinks.get(placed.location)
                for values in placed.source.pieces(source.read):
                    _refuse_nonfinite(values, name, placed.source.stored[0].file)
                    if sink is not None:
                        writer.submit(sink.write, placed.offset, name, _cast(values, placed.dtype, name))
            digests = source.finish()
            writer.drain()
            syncer.drain()
        finally:
            writer.stop()
            syncer.stop()
            for sink in sinks.values():
                sink.close()
    return digests, {location: sink.digest() for location, sink in sinks.items()}


class _InBackground:
    """A thread that does one thing after the other, and whoever submits waits before it lags far behind."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._in_flight: deque[Future[None]] = deque()

    def __enter__(self) -> _InBackground:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Have something done; what went wrong before is raised here."""
        self._in_flight.append(self._thread.submit(work, *arguments))
        while len(self._in_flight) > _PIECES_IN_FLIGHT:
            self._in_flight.popleft().result()

    def drain(self) -> None:
        """Wait until all is done."""
        while self._in_flight:
            self._in_flight.popleft().result()

    def stop(self) -> None:
        """Drop what has not begun."""
        self._thread.shutdown(cancel_futures=True)


class _HashedFiles:
    """Reads runs of bytes, and hashes each file front to back on the way."""

    def __init__(self, files: Sequence[Path], hasher: _InBackground, advance: Advance) -> None:
        self._hashes = {file: hashlib.sha256() for file in files}
        self._ends = dict.fromkeys(files, 0)  # how far each file is hashed
        self._hasher = hasher
        self._advance = advance

    def read(self, file: Path, offset: int, nbytes: int) -> Tensor:
        """Read as ``read_bytes`` does; headers and gaps before the run are read for the hash alone."""
        self._hash_until(file, offset)
        data = read_bytes(file, offset, nbytes)
        self._hash(file, data[max(self._ends[file] - offset, 0) :])
        return data

    def finish(self) -> dict[Path, FileDigest]:
        """Hash what nobody asked for; return the digest of each file."""
        sizes = {file: file.stat().st_size for file in self._hashes}
        for file, size in sizes.items():
            self._hash_until(file, size)
        self._hasher.drain()
        return {file: FileDigest(sizes[file], h.hexdigest()) for file, h in self._hashes.items()}

    def _hash_until(self, file: Path, end: int) -> None:
        while (begin := self._ends[file]) < end:
            self._hash(file, read_bytes(file, begin, min(end - begin, PIECE_BYTES)))

    def _hash(self, file: Path, data: Tensor) -> None:
        if len(data):
            self._hasher.submit(self._hashes[file].update, _bytes(data))
            self._ends[file] += len(data)
            self._advance(len(data))


class _Sink:
    """A data file written front to back, hashed on the way; gaps for alignment are zeros.

    The disk is kept busy from the start: a bundle is on it before it is published, and the system alone
    would begin to write when gigabytes have gathered.
    """

    def __init__(self, path: Path, header: bytes, syncer: _InBackground) -> None:
        self._stream = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._end = 0
        self._syncer = syncer
        self._tensor = ""
        self._append(memoryview(header))

    def write(self, offset: int, tensor_name: str, values: Tensor) -> None:
        """Append a piece; the first piece of a tensor goes to the tensor's offset."""
        if tensor_name != self._tensor:
            self._append(memoryview(bytes(offset - self._end)))
            self._tensor = tensor_name
        self._append(_bytes(values))

    def _append(self, data: memoryview) -> None:
        self._hash.update(data)
        done = 0
        while done < len(data):
            done += self._stream.write(data[done:])
        if self._end // _SYNC_BYTES != (self._end + len(data)) // _SYNC_BYTES:
            self._syncer.submit(os.fsync, self._stream.fileno())
        self._end += len(data)

    def digest(self) -> FileDigest:
        return FileDigest(self._end, self._hash.hexdigest())

    def close(self) -> None:
        self._stream.close()


def _bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor, not copied."""
    return memoryview(values.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _refuse_nonfinite(values: Tensor, name: str, path: Path) -> None:
    if nonfinite(values):
        raise CheckpointError(
            f"{path.name}: tensor {name} holds NaN or infinite values, a model computes only NaN from them",
            "the training diverged or the file is damaged; use another checkpoint or download it again",
        )


def _cast(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    cast = values.to(dtype)
    if dtype == torch.float16 and values.dtype != torch.float16 and nonfinite(cast):
        largest = values.float().abs().max().item()
        raise OptionError(
            f"tensor {name} holds {largest:g}, float16 ends at 65504", "use --precision bfloat16 or float32"
        )
    return cast
