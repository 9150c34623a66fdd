"""A weight that a bundle stores in blocks, read by our own eyes and widened to float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_export.checkpoint import LazyTensor, StoredTensor
from llama_export.checkpoint.tensor import Read, read_bytes, rows_in_a_piece
from llama_export.parity.report import TensorDifference
from llama_export.quantize import Blocks, Quantized, dequantize, unpack, within_bound


@dataclass(frozen=True)
class QuantizedTensor:
    """Rows of a matrix in blocks.

    Attributes:
        name: Its key in the model.
        shape: [N, K].
        codes: [rows, blocks, bytes] uint8, of the whole matrix that the rows are part of.
        scales: [rows, blocks] float32.
        zero_points: [rows, bytes] uint8; None where the middle code is zero.
        blocks: The layout.
        first_row: Where the tensor begins in the matrix.
    """

    name: str
    shape: tuple[int, ...]
    codes: StoredTensor
    scales: StoredTensor
    zero_points: StoredTensor | None
    blocks: Blocks
    first_row: int = 0

    dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """Its length in bytes, widened."""
        return 4 * math.prod(self.shape)

    def rows(self, begin: int, end: int, read: Read = read_bytes) -> Tensor:
        """Read some of its rows: [end - begin, K] float32."""
        begin, end = begin + self.first_row, end + self.first_row
        bits, count = self.blocks.bits, self.blocks.count(self.shape[1])
        zeros = self.zero_points
        quantized = Quantized(
            unpack(self.codes.rows(begin, end, read), bits, self.blocks.size),
            self.scales.rows(begin, end, read),
            None if zeros is None else unpack(zeros.rows(begin, end, read), bits, count),
        )
        return dequantize(quantized, self.blocks, self.shape[1])

    def pieces(self, read: Read = read_bytes) -> Iterator[Tensor]:
        """Read all rows in order, in runs of a few MiB."""
        step = rows_in_a_piece(self.shape, self.dtype)
        for begin in range(0, self.shape[0], step):
            yield self.rows(begin, min(begin + step, self.shape[0]), read)

    def read(self) -> Tensor:
        """Read it whole: [N, K] float32."""
        return torch.cat(list(self.pieces()))


def compare_quantized(candidate: QuantizedTensor, source: LazyTensor) -> TensorDifference:
    """Count the values that stand in a block which is not the checkpoint's, within what its bits allow."""
    differing, largest, begin = 0, 0.0, 0
    for values in source.pieces():
        want, got = values.float(), candidate.rows(begin, begin + len(values))
        begin += len(values)
        differing += int((~within_bound(got, want, candidate.blocks)).sum()) * candidate.blocks.size
        largest = max(largest, float((got - want).abs_().nan_to_num_(nan=math.inf).max()))
    count = math.prod(candidate.shape)
    return TensorDifference(candidate.name, count, min(differing, count), largest)
