"""From rows of a matrix to the arrays that are written: the one way in for whoever streams weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from llama_export.checkpoint.finite import nonfinite
from llama_export.quantize.blocks import Blocks, NotFiniteError, Quantized
from llama_export.quantize.methods import Method, quantize, round_to_nearest, search_scales
from llama_export.quantize.native import round_rows


def encode(rows: Tensor, blocks: Blocks, method: Method) -> tuple[Tensor, ...]:
    """Quantize rows with a method, and with our own kernels where they do the same.

    Raises:
        NotFiniteError: A value is NaN or infinite.
    """
    if method in (search_scales, round_to_nearest):
        # Eight bits are not searched.
        made = round_rows(rows, blocks, searched=method is search_scales and blocks.bits < 8)
        if made is not None:
            return made
    return encode_with(rows, blocks, lambda rows, blocks: quantize(rows, blocks, method))


def encode_with(
    rows: Tensor, blocks: Blocks, quantize_rows: Callable[[Tensor, Blocks], Quantized]
) -> tuple[Tensor, ...]:
    """Quantize rows with any function, and pack the codes.

    Raises:
        NotFiniteError: A value is NaN or infinite.
    """
    if nonfinite(rows):
        raise NotFiniteError
    return quantize_rows(rows, blocks).packed(blocks.bits)
