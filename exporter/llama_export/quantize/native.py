"""Rounding rows with our own CPU kernels, where they were built: the bits that ``methods`` gives, sooner."""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch
from torch import Tensor

from llama_export.quantize.blocks import BLOCK_SIZES, Blocks, NotFiniteError, Part, pack
from llama_runtime.kernels import LIBRARY, OFF, VARIABLE

_STORED = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class _Rounding(ctypes.Structure):
    """As in ``runtime/kernels/src/rounding.h``."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("stored", ctypes.c_int),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("bits", ctypes.c_int),
        ("block", ctypes.c_int),
        ("searched", ctypes.c_bool),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zero_points", ctypes.c_void_p),
    )


def round_rows(rows: Tensor, blocks: Blocks, *, searched: bool) -> tuple[Tensor, ...] | None:
    """Quantize rows of a matrix.

    Args:
        rows: [N, K], any float dtype.
        blocks: The layout.
        searched: As ``search_scales`` does it, otherwise as ``round_to_nearest``.

    Returns:
        The arrays of ``Blocks.parts``; None where the library is missing, or has not these blocks.

    Raises:
        NotFiniteError: A value is NaN or infinite.
    """
    library = _library()
    if library is None or rows.dtype not in _STORED or blocks.size not in (16, *BLOCK_SIZES):
        return None
    rows = rows.contiguous()
    count = blocks.count(rows.shape[1])
    codes, scales = (_empty(part) for part in blocks.parts(tuple(rows.shape))[:2])
    zeros = None if blocks.symmetric else torch.empty(len(rows), count, dtype=torch.uint8)
    rounding = _Rounding(
        rows.data_ptr(), _STORED[rows.dtype], *rows.shape, blocks.bits, blocks.size, searched,
        codes.data_ptr(), scales.data_ptr(), None if zeros is None else zeros.data_ptr(),
    )  # fmt: skip
    if not library.llama_kernels_round_rows(ctypes.byref(rounding)):
        raise NotFiniteError
    return (codes, scales) if zeros is None else (codes, scales, pack(zeros, blocks.bits))


def _empty(part: Part) -> Tensor:
    return torch.empty(part.shape, dtype=part.dtype)


@cache
def _library() -> ctypes.CDLL | None:
    """The library; None where it is not there, not wanted, or older than this function of it."""
    if os.environ.get(VARIABLE) == OFF or not LIBRARY.exists():
        return None
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.llama_kernels_round_rows.restype = ctypes.c_bool
    except (OSError, AttributeError):
        return None
    return library
