"""A tensor that stands on disk, or is computed from some that do: read when asked, some rows at a time.

Memory is bounded by pieces: consecutive runs of whole rows, of about ``PIECE_BYTES``. Whoever consumes them
may bring a ``Read`` of his own, which sees every byte that is read: that is how files are hashed in passing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, reading
from llama_export.errors import CheckpointError

PIECE_BYTES = 8 << 20

# (file, offset, nbytes) -> [nbytes] uint8, in memory of its own that nobody may change afterwards.
Read = Callable[[Path, int, int], torch.Tensor]


def read_bytes(file: Path, offset: int, nbytes: int) -> torch.Tensor:
    """Read a run of bytes into memory of its own.

    Returns:
        [nbytes] uint8.

    Raises:
        CheckpointError: The file has gone, is shorter than it was, or cannot be read.
    """
    data = torch.empty(nbytes, dtype=torch.uint8)
    # Read rather than map: mapped pages count as resident until the kernel takes them back.
    buffer, done = memoryview(data.numpy()), 0  # type: ignore[arg-type]
    with reading(file.name), file.open("rb", buffering=0) as stream:
        stream.seek(offset)
        while done < nbytes:
            count = stream.readinto(buffer[done:])
            if not count:
                raise CheckpointError(
                    f"{file.name}: ends early", "the file changed while it was read; " + DOWNLOAD_AGAIN
                )
            done += count
    return data


@dataclass(frozen=True)
class StoredTensor:
    """Where the bytes of one tensor stand.

    Attributes:
        name: Its key in the model, such as ``model.layers.0.mlp.up_proj.weight``.
        dtype: float32, float16 or bfloat16.
        shape: Its shape; the bytes are row-major and little-endian.
        file: The real file, symlinks followed.
        offset: Where it begins, in bytes from the start of the file.
        nbytes: Its length in bytes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors on disk that it is read from: itself."""
        return (self,)

    def rows(self, begin: int, end: int, read: Read = read_bytes) -> torch.Tensor:
        """Read some of its rows.

        Returns:
            [end - begin, *shape[1:]] in ``dtype``.
        """
        row_bytes = self.nbytes // self.shape[0] if self.shape[0] else 0
        data = read(self.file, self.offset + begin * row_bytes, (end - begin) * row_bytes)
        return data.view(self.dtype).view(end - begin, *self.shape[1:])

    def pieces(self, read: Read = read_bytes, multiple: int = 1) -> Iterator[torch.Tensor]:
        """Read all rows in order, in runs of about PIECE_BYTES.

        Args:
            read: Reads the bytes.
            multiple: Every run but the last is a multiple of so many rows.
        """
        step = rows_in_a_piece(self.shape, self.dtype, multiple)
        for begin in range(0, self.shape[0], step):
            yield self.rows(begin, min(begin + step, self.shape[0]), read)

    def read(self, read: Read = read_bytes) -> torch.Tensor:
        """Read it whole.

        Returns:
            [*shape] in ``dtype``.
        """
        return read(self.file, self.offset, self.nbytes).view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class ComputedTensor:
    """A tensor whose bytes stand nowhere as the model needs them, and how it is made of some that do.

    Attributes:
        name: Its key in the model.
        dtype: What its pieces have.
        shape: Its shape, at least one dimension.
        stored: The tensors on disk that it is made of.
        how: What is done with them, as a participle for messages, such as ``"transposed"``.
        compute: Makes its rows in order, in runs of about PIECE_BYTES, reading with what it is given.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stored: tuple[StoredTensor, ...]
    how: str
    compute: Callable[[Read], Iterator[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """Its length in bytes, as it will be."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def pieces(self, read: Read = read_bytes) -> Iterator[torch.Tensor]:
        """Compute all rows in order, in runs of about PIECE_BYTES."""
        return self.compute(read)

    def read(self, read: Read = read_bytes) -> torch.Tensor:
        """Compute it whole.

        Returns:
            [*shape] in ``dtype``.
        """
        return gather(self, read)


# Both have name, dtype, shape, nbytes, stored, pieces() and read(); only bytes that stand can be linked.
LazyTensor = StoredTensor | ComputedTensor


def widen(tensor: LazyTensor) -> LazyTensor:
    """The same values in float32."""
    if tensor.dtype == torch.float32:
        return tensor

    def compute(read: Read) -> Iterator[torch.Tensor]:
        return (piece.float() for piece in tensor.pieces(read))

    return ComputedTensor(tensor.name, torch.float32, tensor.shape, tensor.stored, "widened", compute)


def gather(tensor: LazyTensor, read: Read) -> torch.Tensor:
    """Read a tensor piece by piece into one, so that no more than it and a piece is in memory.

    Returns:
        [*shape] in its dtype.
    """
    whole, begin = torch.empty(tensor.shape, dtype=tensor.dtype), 0
    for piece in tensor.pieces(read):
        whole[begin : begin + len(piece)] = piece
        begin += len(piece)
    return whole


def rows_in_a_piece(shape: tuple[int, ...], dtype: torch.dtype, multiple: int = 1) -> int:
    """How many rows make about PIECE_BYTES: a multiple, at least one."""
    row_bytes = torch.Size(shape[1:]).numel() * dtype.itemsize
    return max(PIECE_BYTES // max(row_bytes, 1) // multiple, 1) * multiple
