"""GPTQ: what rounding a column costs is taken back in those that are still to be rounded.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv 2210.17323). Scales are searched block by block, on the values as the blocks before have left them.
Rows do not depend on each other, so a matrix may come in pieces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llama_export.quantize.blocks import Blocks, Quantized, dequantize, in_blocks, within_bound
from llama_export.quantize.methods import search_scales

_DAMPING = 0.01  # of the mean diagonal: inputs that never occur must not divide by zero
_MOST_DAMPING = 10.0


def error_feedback(gram: Tensor) -> Tensor:
    """What an error in one column must change in the columns behind it.

    Args:
        gram: [K, K] float32, the sum of x xT over the inputs of a matrix.

    Returns:
        The upper triangular [K, K] factor U of the inverse, U^T U = gram^-1, each row over its diagonal.
        The size of the inputs is divided out of it, so it may be divided out of the sum first.
    """
    scaled = gram / gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damping = _DAMPING
    while True:
        damped = scaled + damping * torch.eye(len(scaled))
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed or damping > _MOST_DAMPING:
            break
        damping *= 10
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    return upper / upper.diagonal()[:, None]


def gptq(rows: Tensor, blocks: Blocks, feedback: Tensor) -> Quantized:
    """Quantize rows of a matrix.

    A block that all that was taken back has led too far from its own values is rounded by itself instead, so
    that every block of a bundle can be held to one bound, whatever made it.

    Args:
        rows: [N, K], any float dtype, finite.
        blocks: The layout.
        feedback: [K, K], from ``error_feedback``.
    """
    wanted = rows.float()
    left = wanted.clone()
    codes, scales, zeros = list[Tensor](), list[Tensor](), list[Tensor]()
    for begin in range(0, left.shape[1], blocks.size):
        part = slice(begin, min(begin + blocks.size, left.shape[1]))
        within = feedback[part, part]
        found = search_scales(in_blocks(left[:, part], blocks.size), blocks)
        found, errors = _round_columns(left[:, part].clone(), found, blocks, within)
        far = ~within_bound(dequantize(found, blocks, errors.shape[1]), wanted[:, part], blocks)[:, 0]
        if far.any():
            alone = search_scales(in_blocks(wanted[far, part], blocks.size), blocks)
            errors[far] = _errors(left[far, part].clone(), dequantize(alone, blocks, errors.shape[1]), within)
            for kept, new in zip(_arrays(found), _arrays(alone), strict=True):
                kept[far] = new
        left[:, part.stop :] -= errors @ feedback[part, part.stop :]
        codes.append(found.codes)
        scales.append(found.scales)
        if found.zero_points is not None:
            zeros.append(found.zero_points)
    return Quantized(torch.cat(codes, 1), torch.cat(scales, 1), torch.cat(zeros, 1) if zeros else None)


def _round_columns(
    values: Tensor, found: Quantized, blocks: Blocks, within: Tensor
) -> tuple[Quantized, Tensor]:
    """Round one column after the other to the scales found; the errors are [N, columns]."""
    codes, scale = found.codes.clone(), found.scales[:, 0]
    zero = blocks.middle if found.zero_points is None else found.zero_points.float()[:, 0]
    usable = torch.where(scale == 0, 1, scale)
    errors = torch.empty_like(values)
    for index in range(values.shape[1]):
        column = values[:, index]
        code = (column / usable + zero).round_().clamp_(0, 2 * blocks.middle - 1)
        codes[:, 0, index] = code.to(torch.uint8)
        errors[:, index] = column - (code - zero) * scale
        values[:, index:] -= torch.outer(errors[:, index], within[index, index:])
    return Quantized(codes, found.scales, found.zero_points), errors


def _errors(values: Tensor, rounded: Tensor, within: Tensor) -> Tensor:
    """What each column is off when its rounded values are given, and the errors before it are taken back."""
    errors = torch.empty_like(values)
    for index in range(values.shape[1]):
        errors[:, index] = values[:, index] - rounded[:, index]
        values[:, index:] -= torch.outer(errors[:, index], within[index, index:])
    return errors


def _arrays(quantized: Quantized) -> list[Tensor]:
    arrays = quantized.codes, quantized.scales, quantized.zero_points
    return [array for array in arrays if array is not None]
