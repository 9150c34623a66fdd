"""The layout that ``com.microsoft::MatMulNBits`` and ``GatherBlockQuantized`` read.

A matrix [N, K] is cut along K into blocks. A value is ``(code - zero_point) * scale`` with the block's scale
and zero point; codes are 4 or 8 bits, two codes a byte with the first in the low half. Without zero points
the middle of the codes, 8 or 128, is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_SIZES = (32, 64, 128)
# How far the values of a block may be from the checkpoint's: their root mean square error, in steps between
# two codes of the coarsest scale that has a code for every value. Rounding to the nearest gives at most half
# a step and 0.29 on average; a scale that cuts off the largest value gives more where few values are large.
# A block of zeros, or of another weight's values, is 2 to 4 steps off at four bits, and 30 or more at eight.
BLOCK_ERROR_STEPS = 1.0


SCALES = "_scales"


class NotFiniteError(ValueError):
    """A value is NaN or infinite, and no block can hold it."""


@dataclass(frozen=True)
class Part:
    """One of the arrays that a quantized matrix is made of.

    Attributes:
        suffix: What its name has behind the weight's.
        dtype: uint8 for numbers, a float for scales.
        shape: As it is stored: bytes of numbers.
    """

    suffix: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Blocks:
    """How a matrix is quantized.

    Attributes:
        bits: Of a code, 4 or 8.
        size: Values in a block.
        symmetric: No zero points are stored: the middle code is zero.
    """

    bits: int
    size: int
    symmetric: bool = True

    @property
    def precision(self) -> str:
        """``int4`` or ``int8``."""
        return f"int{self.bits}"

    @property
    def middle(self) -> int:
        """The code of zero where no zero points are stored."""
        return 1 << (self.bits - 1)

    def count(self, columns: int) -> int:
        """How many blocks a row of so many values has; the last may be a part of one."""
        return -(-columns // self.size)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The arrays of a matrix [N, K], in the order they are written: codes, scales, zero points."""
        rows, count = shape[0], self.count(shape[1])
        codes = Part(f"_q{self.bits}", torch.uint8, (rows, count, self.size * self.bits // 8))
        scales = Part(SCALES, torch.float32, (rows, count))
        if self.symmetric:
            return codes, scales
        return codes, scales, Part("_zero_points", torch.uint8, (rows, -(-count * self.bits // 8)))

    def encode(self, rows: Tensor, encode_rows: Encode) -> tuple[Tensor, ...]:
        """Quantize some rows of a matrix: the arrays of ``parts``, for these rows.

        Args:
            rows: [N, K], any float dtype.
            encode_rows: How.

        Raises:
            NotFiniteError: A value is NaN or infinite.
        """
        return encode_rows(rows, self)


@dataclass(frozen=True)
class Quantized:
    """Rows of a quantized matrix, not yet packed.

    Attributes:
        codes: [N, blocks, size] uint8.
        scales: [N, blocks] float32.
        zero_points: [N, blocks] uint8; None where the middle code is zero.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None

    def packed(self, bits: int) -> tuple[Tensor, ...]:
        """The arrays of ``Blocks.parts``."""
        codes = pack(self.codes, bits)
        if self.zero_points is None:
            return codes, self.scales
        return codes, self.scales, pack(self.zero_points, bits)


Encode = Callable[[Tensor, Blocks], tuple[Tensor, ...]]
"""From [N, K] rows, any float dtype, to the arrays of ``Blocks.parts``; raises ``NotFiniteError``."""


def in_blocks(rows: Tensor, size: int) -> Tensor:
    """[N, K] to [N, blocks, size], zeros behind the last value of a row."""
    missing = -rows.shape[1] % size
    whole = F.pad(rows, (0, missing)) if missing else rows
    return whole.reshape(len(rows), -1, size)


def dequantize(quantized: Quantized, blocks: Blocks, columns: int) -> Tensor:
    """The values that a runtime computes with: [N, columns] float32."""
    zero = blocks.middle if quantized.zero_points is None else quantized.zero_points[..., None].float()
    values = (quantized.codes.float() - zero) * quantized.scales[..., None]
    return values.flatten(1)[:, :columns]


def within_bound(found: Tensor, wanted: Tensor, blocks: Blocks) -> Tensor:
    """Which blocks are what they should be, within what rounding to their codes can do.

    Args:
        found: [N, K] dequantized values.
        wanted: [N, K] float32, what they were made from.
        blocks: The layout.

    Returns:
        [N, blocks] bool; False for a block with a NaN, and for a block of zeros that holds anything else.
    """
    want = in_blocks(wanted, blocks.size)
    low, high = want.amin(-1).clamp_(max=0), want.amax(-1).clamp_(min=0)
    if blocks.symmetric:
        step = torch.maximum(high, -low) / blocks.middle
    else:
        step = (high - low) / (2 * blocks.middle - 1)
    off = (in_blocks(found, blocks.size) - want).square_().mean(-1).sqrt_()
    return off <= BLOCK_ERROR_STEPS * step + torch.finfo(torch.float32).tiny


def pack(codes: Tensor, bits: int) -> Tensor:
    """[..., n] uint8 codes to [..., ceil(n * bits / 8)] bytes, the first code in the low half."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = F.pad(codes, (0, 1))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The opposite of ``pack``: [..., count] uint8 codes."""
    if bits == 8:
        return packed
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., :count]
