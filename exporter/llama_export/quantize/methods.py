"""How the scale of a block is found. Each method works on whole rows, one row like any other.

The kernels library does ``search_scales`` and ``round_to_nearest`` too (``native``), and must give the same
bits: every operation here rounds once, and sums over a block are taken in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llama_export.quantize.blocks import Blocks, Quantized, in_blocks

Method = Callable[[Tensor, Blocks], Quantized]
"""From [N, blocks, size] float32 values to their codes."""

# The largest value of a block takes the last code, or would take one somewhat beyond it and is cut off, or
# stays below it: five tries find nine tenths of what nineteen find (benchmarks/LOG.md).
_STRETCHES = (-1.0, -0.5, 0.0, 0.6, 1.2)
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
# Rows are worked on in pieces that stay in a core's own cache.
_CACHED_VALUES = 1 << 17
# How far from whole numbers the codes of values on a grid may be, and how many values tell most others off.
_OFF_GRID, _FIRST = 1e-3, 8


def quantize(rows: Tensor, blocks: Blocks, method: Method) -> Quantized:
    """Quantize rows of a matrix.

    Args:
        rows: [N, K], any float dtype, finite.
        blocks: The layout.
        method: One of ``METHODS``.
    """
    step = max(_CACHED_VALUES // rows.shape[1], 1)
    pieces = [method(in_blocks(piece.float(), blocks.size), blocks) for piece in torch.split(rows, step)]
    if len(pieces) == 1:
        return pieces[0]
    zeros = [piece.zero_points for piece in pieces if piece.zero_points is not None]
    return Quantized(
        torch.cat([piece.codes for piece in pieces]),
        torch.cat([piece.scales for piece in pieces]),
        torch.cat(zeros) if zeros else None,
    )


def round_to_nearest(values: Tensor, blocks: Blocks) -> Quantized:
    """The scale that lets the block's largest value, or smallest and largest, take the outermost codes."""
    (scales,), (zeros,) = _tries(values, blocks, (0.0,), (1.0,))
    return _quantized(_codes(values, _inverse(scales), zeros, blocks), scales, zeros, blocks)


def search_scales(values: Tensor, blocks: Blocks) -> Quantized:
    """Of a few scales, each made the best for its own codes by least squares, the one with the least error.

    Eight bits are rounded: their error is a half percent, and a search takes off a twentieth of it.
    """
    if blocks.bits == 8:
        return round_to_nearest(values, blocks)
    scales, zeros = _tries(values, blocks, _STRETCHES, _SHRINKS)
    inverse = _inverse(scales)
    # A block is a column here: [size, N * blocks], and codes are [tries, size, N * blocks].
    sides = values.flatten(0, 1).T.contiguous()
    codes = _codes(sides, inverse.view(len(inverse), 1, -1), zeros.view(len(zeros), 1, -1), blocks)
    cross = _in_order((sides * codes).unbind(1)).view_as(scales)
    fit = cross * _inverse(codes.square_().sum(1).view_as(scales))
    explained = cross * fit  # how much of the sum of squares
    best = explained.max(0, keepdim=True).indices  # argmax takes ten times as long
    inverse, zeros, scales = (tried.gather(0, best)[0] for tried in (inverse, zeros, fit))
    return _quantized(_codes(values, inverse, zeros, blocks), scales, zeros, blocks)


def keep_grid(values: Tensor, blocks: Blocks) -> Quantized:
    """As ``search_scales``, but values that are multiples of one number, as rounded ones are, stay exact."""
    found = search_scales(values, blocks)
    if not bool(_is_on_grid(values[..., :_FIRST], values, blocks.middle).any()):
        return found
    largest = _largest(values)
    for code in range(blocks.middle, 0, -1):
        on_grid = _is_on_one(values, largest, code)
        scales = largest / -code
        codes = _codes(values, _inverse(scales), torch.zeros_like(scales), blocks).add_(blocks.middle)
        found.codes[on_grid] = codes[on_grid].to(torch.uint8)
        found.scales[on_grid] = scales[..., 0][on_grid]
    return found


METHODS: dict[str, Method] = {"search": search_scales, "nearest": round_to_nearest}


def _tries(
    values: Tensor, blocks: Blocks, stretches: tuple[float, ...], shrinks: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Scales and codes of zero that may be good ones, [tries, N, blocks, 1] each."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    if blocks.symmetric:
        scales = torch.where(-low > high, low, high) / _each(
            [-(blocks.middle + stretch) for stretch in stretches]
        )
        return scales.add_(0.0), torch.full_like(scales, blocks.middle)  # no negative zeros
    low, high = low.clamp_(max=0), high.clamp_(min=0)  # zero must have a code
    scales = (high - low).add_(0.0) * _each([shrink / (2 * blocks.middle - 1) for shrink in shrinks])
    zeros = low * _each([-shrink for shrink in shrinks]) * _inverse(scales)
    return scales, zeros.round_().clamp_(0, 2 * blocks.middle - 1)


def _in_order(terms: Sequence[Tensor]) -> Tensor:
    """Their sum, which has the same bits on any machine and in our own kernels."""
    total = torch.zeros_like(terms[0])
    for term in terms:
        total += term
    return total


def _each(tries: list[float]) -> Tensor:
    return torch.tensor(tries).view(-1, 1, 1, 1)


def _largest(values: Tensor) -> Tensor:
    """Of each block the value of the largest magnitude: [N, blocks, 1]."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return torch.where(-low > high, low, high)


def _is_on_grid(some: Tensor, values: Tensor, middle: int) -> Tensor:
    """Which blocks' first values may all be multiples of one number: [N, blocks]."""
    largest = _largest(values)
    on_grid = [_is_on_one(some, largest, code) for code in range(1, middle + 1)]
    return torch.stack(on_grid).any(0)


def _is_on_one(values: Tensor, largest: Tensor, code: int) -> Tensor:
    """Which blocks are multiples of the number that takes the largest value to ``-code``: [N, blocks]."""
    codes = values * (-code * _inverse(largest))
    return ((codes - codes.round()).abs() <= _OFF_GRID).all(-1)


def _codes(values: Tensor, inverse: Tensor, zeros: Tensor, blocks: Blocks) -> Tensor:
    """The codes as numbers around zero: [..., N, blocks, size] float32."""
    codes = (values * inverse).round_()
    if blocks.symmetric:
        return codes.clamp_(-blocks.middle, blocks.middle - 1)
    return codes.add_(zeros).clamp_(0, 2 * blocks.middle - 1).sub_(zeros)


def _quantized(codes: Tensor, scales: Tensor, zeros: Tensor, blocks: Blocks) -> Quantized:
    stored_zeros = None if blocks.symmetric else zeros.squeeze(-1).to(torch.uint8)
    return Quantized(codes.add_(zeros).to(torch.uint8), _short(scales.squeeze(-1)), stored_zeros)


def _short(scales: Tensor) -> Tensor:
    """Rounded to the 11 bits that float16 has: our kernels then read half as many bytes of them."""
    bits = scales.contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


def _inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 where that is infinite: a block is all zeros, or too small for a scale."""
    return values.reciprocal().nan_to_num_(posinf=0.0, neginf=0.0)
