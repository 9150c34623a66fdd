"""One pass over the checkpoint's bytes: hash, check, cast, write; never more than a few pieces in memory."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama_export.checkpoint import Checkpoint, StoredTensor, nonfinite
from llama_export.errors import CheckpointError, OptionError
from llama_export.weights.plan import WeightPlan, in_file_order

PIECE_BYTES = 8 << 20
_PIECES_IN_FLIGHT = 3

Advance = Callable[[int], None]


@dataclass(frozen=True)
class FileDigest:
    """Size and SHA-256 of one whole file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class _Piece:
    """A run of a source file's bytes: part of a tensor, or the header and gaps between tensors (None)."""

    file: Path
    data: Tensor
    tensor_name: str | None


def write_weights(
    checkpoint: Checkpoint, plan: WeightPlan, folder: Path, advance: Advance
) -> tuple[dict[Path, FileDigest], dict[str, FileDigest]]:
    """Read every byte of the checkpoint once; refuse bad values and write what the plan writes.

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
    sources = {path: hashlib.sha256() for path in checkpoint.weight_files}
    written = [location for location, source in plan.data_files.items() if source is None]
    sink = _Sink(folder / written[0]) if written else None
    with ThreadPoolExecutor(1) as hasher, ThreadPoolExecutor(1) as writer:
        in_flight: deque[Future[None]] = deque()
        try:
            for piece in _pieces(checkpoint):
                in_flight.append(hasher.submit(sources[piece.file].update, _bytes(piece.data)))
                if piece.tensor_name is not None:
                    values = piece.data.view(checkpoint.tensors[piece.tensor_name].dtype)
                    _refuse_nonfinite(values, piece.tensor_name, piece.file)
                    if sink is not None:
                        placed = plan.weights[piece.tensor_name]
                        cast = _cast(values, placed.dtype, piece.tensor_name)
                        in_flight.append(writer.submit(sink.write, placed.offset, piece.tensor_name, cast))
                while len(in_flight) > 2 * _PIECES_IN_FLIGHT:
                    in_flight.popleft().result()
                advance(piece.data.nbytes)
            while in_flight:
                in_flight.popleft().result()
        finally:
            writer.shutdown(cancel_futures=True)
            if sink is not None:
                sink.close()
    source_digests = {path: FileDigest(path.stat().st_size, h.hexdigest()) for path, h in sources.items()}
    return source_digests, {written[0]: sink.digest()} if sink is not None else {}


class _Sink:
    """A data file written front to back, hashed on the way; gaps for alignment are zeros."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._end = 0
        self._tensor = ""

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
        self._end += len(data)

    def digest(self) -> FileDigest:
        return FileDigest(self._end, self._hash.hexdigest())

    def close(self) -> None:
        self._stream.close()


def _pieces(checkpoint: Checkpoint) -> Iterator[_Piece]:
    """Yield every byte of every weight file, in order, cut at tensors and at PIECE_BYTES."""
    tensors: dict[Path, list[tuple[str, StoredTensor]]] = {path: [] for path in checkpoint.weight_files}
    for name, tensor in in_file_order(checkpoint):
        tensors[tensor.file].append((name, tensor))
    for path, inside in tensors.items():
        size = path.stat().st_size
        with path.open("rb", buffering=0) as stream:
            position = 0
            for name, tensor in inside:
                for data in _read(stream, path, tensor.offset - position):  # header, or a tensor nobody needs
                    yield _Piece(path, data, None)
                for data in _read(stream, path, tensor.nbytes):
                    yield _Piece(path, data, name)
                position = tensor.offset + tensor.nbytes
            for data in _read(stream, path, size - position):
                yield _Piece(path, data, None)


def _read(stream: io.FileIO, path: Path, nbytes: int) -> Iterator[Tensor]:
    """Read the next ``nbytes`` as uint8 tensors of at most PIECE_BYTES, memory of their own each."""
    while nbytes > 0:
        data = torch.empty(min(nbytes, PIECE_BYTES), dtype=torch.uint8)
        view, done = _bytes(data), 0
        while done < len(view):
            count = stream.readinto(view[done:])
            if not count:
                raise CheckpointError(f"{path.name}: ends early", "the file changed while it was read")
            done += count
        nbytes -= len(view)
        yield data


def _bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor, not copied."""
    return memoryview(values.view(torch.uint8).numpy())  # type: ignore[arg-type]


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
