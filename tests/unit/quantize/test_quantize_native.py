"""Our own kernels round like PyTorch does, bit for bit, whatever the values are."""

from __future__ import annotations

import itertools

import pytest
import torch

from llama_export.quantize import METHODS, Blocks, NotFiniteError, encode, native, quantize
from llama_export.quantize.native import round_rows

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = [Blocks(*layout) for layout in itertools.product((4, 8), (16, 32, 64, 128), (True, False))]

needs_kernels = pytest.mark.skipif(
    not native.LIBRARY.exists(), reason="the kernels were not built: make kernels"
)


def awkward_rows(dtype, columns, scale):
    """[12, columns]: ordinary rows, and some with zeros of both signs, one sign, or both ends of a dtype."""
    rows = torch.randn(12, columns, generator=torch.Generator().manual_seed(columns)) * scale
    rows[1] = 0
    rows[2, ::2] = -0.0
    rows[2, 1::2] = 0
    rows[3], rows[4], rows[5] = rows[3].abs(), -rows[4].abs(), rows[5].sign()
    limits = torch.finfo(dtype)
    rows[6, 0], rows[7, -1] = limits.max, limits.min
    rows[8] = limits.smallest_normal
    rows[9] = limits.max * rows[9].sign()
    rows[10] = torch.where(rows[10] > 0, 0.0, -0.0)
    return rows.clamp_(limits.min, limits.max).to(dtype)


def bits_of(array):
    return array.contiguous().view(torch.int32) if array.dtype == torch.float32 else array


@needs_kernels
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("blocks", LAYOUTS, ids=str)
def test_the_bits_are_pytorchs(blocks, dtype, method):
    searched = method == "search" and blocks.bits < 8
    for columns, scale in itertools.product((1, 31, 128, 300), (1.0, 1e-3, 1e-37, 1e-41, 1e36)):
        rows = awkward_rows(dtype, columns, scale)
        found = round_rows(rows, blocks, searched=searched)
        wanted = quantize(rows, blocks, METHODS[method]).packed(blocks.bits)
        for array, want in zip(found, wanted, strict=True):
            assert array.dtype == want.dtype
            assert torch.equal(bits_of(array), bits_of(want)), (columns, scale)


@needs_kernels
def test_rows_that_do_not_stand_together_are_taken_too():
    rows = torch.randn(64, 40, generator=torch.Generator().manual_seed(0)).T
    found = round_rows(rows, Blocks(4, 32), searched=True)
    assert torch.equal(found[0], round_rows(rows.contiguous(), Blocks(4, 32), searched=True)[0])


@needs_kernels
def test_other_blocks_are_left_to_pytorch():
    assert round_rows(torch.ones(2, 8), Blocks(4, 4), searched=True) is None


@pytest.mark.parametrize("library", [pytest.param("ours", marks=needs_kernels), "none"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_that_no_block_can_hold_are_refused(monkeypatch, dtype, value, library):
    if library == "none":
        monkeypatch.setattr(native, "_library", lambda: None)
    rows = torch.ones(3, 100, dtype=dtype)
    encode(rows, Blocks(4, 32), METHODS["search"])
    rows[1, 99] = value
    with pytest.raises(NotFiniteError):
        encode(rows, Blocks(4, 32), METHODS["search"])
