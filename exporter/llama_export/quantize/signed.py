"""The layouts that standard ``DequantizeLinear`` reads: signed numbers, and scales of the products' dtype.

``int4`` has a scale for each block of a row, ``int8`` and ``fp8`` (E4M3) one for each row: what TensorRT
multiplies without widening the matrix first. It takes no zero points, and of ``int4`` alone negative scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llama_export.checkpoint.finite import nonfinite
from llama_export.quantize.blocks import Blocks, Encode, NotFiniteError, Part, unpack

Kind = Literal["int4", "int8", "fp8"]
_SIGN_BITS = 0x88  # of the two codes in a byte: from "8 is zero" to two's complement, and back
_LARGEST = {"int8": 127.0, "fp8": 448.0}
SUFFIXES: dict[Kind, str] = {"int4": "_q4", "int8": "_q8", "fp8": "_f8"}


@dataclass(frozen=True)
class Signed:
    """How a matrix [N, K] is quantized.

    Attributes:
        kind: What a value is stored as.
        scale_dtype: Of the scales, and of what a value is widened to.
        size: Values in a block, which divides K; 0 where a row has one scale.
    """

    kind: Kind
    scale_dtype: torch.dtype
    size: int = 0

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The arrays of a matrix, in the order they are written: numbers, as bytes, and scales."""
        rows, columns = shape
        if self.kind == "int4":
            scales = rows, columns // self.size
            return (
                Part(SUFFIXES[self.kind], torch.uint8, (rows, columns // 2)),
                Part("_scales", self.scale_dtype, scales),
            )
        return (
            Part(SUFFIXES[self.kind], torch.uint8, (rows, columns)),
            Part("_scales", self.scale_dtype, (rows,)),
        )

    def encode(self, rows: Tensor, encode_rows: Encode) -> tuple[Tensor, ...]:
        """Quantize some rows: the arrays of ``parts``, for these rows.

        Args:
            rows: [N, K], any float dtype.
            encode_rows: How the scales of blocks are found; those of whole rows are as small as can be.

        Raises:
            NotFiniteError: A value is NaN or infinite.
        """
        if self.kind == "int4":
            codes, scales = encode_rows(rows, Blocks(4, self.size))
            return signed_codes(codes.flatten(1)), scales.to(self.scale_dtype)
        if nonfinite(rows):
            raise NotFiniteError
        values, largest = rows.float(), _LARGEST[self.kind]
        # Codes are found with the scale as it is stored: rounding it costs nothing then.
        scales = _not_zero(values.abs().amax(1) / largest, self.scale_dtype)
        scaled = (values / scales.float()[:, None]).clamp_(-largest, largest)
        stored = scaled.round_().to(torch.int8) if self.kind == "int8" else scaled.to(torch.float8_e4m3fn)
        return stored.view(torch.uint8), scales

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The values that ``DequantizeLinear`` gives: [N, K] in ``scale_dtype``.

        Args:
            codes: [N, bytes] uint8, as ``encode`` gave them.
            scales: [N] or [N, blocks].
        """
        if self.kind == "int4":
            numbers = unpack(signed_codes(codes), 4, 2 * codes.shape[1]).float() - 8
            wide = scales.float().repeat_interleave(self.size, dim=1)
        else:
            stored = codes.view(torch.int8 if self.kind == "int8" else torch.float8_e4m3fn)
            numbers, wide = stored.float(), scales.float()[:, None]
        return (numbers * wide).to(self.scale_dtype)


def signed_codes(packed: Tensor) -> Tensor:
    """Packed 4-bit codes with 8 as zero to two's complement, or back."""
    return packed ^ _SIGN_BITS


def _not_zero(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales in their dtype; 1 for a row that is all zeros, or too small for one."""
    stored = scales.to(dtype)
    return torch.where(stored > 0, stored, torch.ones((), dtype=dtype))
