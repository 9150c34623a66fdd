"""How scales are found: bounds that hold for every value, and which method is closer."""

from __future__ import annotations

import pytest
import torch

from llama_export.quantize import METHODS, Blocks, dequantize, in_blocks, quantize

LAYOUTS = [
    Blocks(bits, size, symmetric) for bits in (4, 8) for size in (32, 128) for symmetric in (True, False)
]


def squared_error(values, blocks, method):
    """[N, blocks] sum of squares, tails included."""
    found = dequantize(quantize(values, blocks, METHODS[method]), blocks, values.shape[1])
    return in_blocks(found - values.float(), blocks.size).square().sum(-1)


def random_rows(seed=0, rows=37, columns=300):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blocks", LAYOUTS, ids=str)
def test_scales_have_no_more_bits_than_float16(blocks, method):
    scales = quantize(random_rows(), blocks, METHODS[method]).scales
    assert torch.equal(scales, (scales * 2**10).half().float() / 2**10)


@pytest.mark.parametrize("blocks", LAYOUTS, ids=str)
def test_rounding_is_within_a_step_of_the_blocks_range(blocks):
    values = random_rows()
    found = dequantize(quantize(values, blocks, METHODS["nearest"]), blocks, values.shape[1])
    cut = in_blocks(values, blocks.size)
    if blocks.symmetric:
        step = cut.abs().amax(-1) / blocks.middle
    else:
        step = (cut.amax(-1).clamp(min=0) - cut.amin(-1).clamp(max=0)) / (2 * blocks.middle - 1)
    off = in_blocks(found - values, blocks.size).abs().amax(-1)
    # Symmetric codes end one short of the middle on the side that the largest value is not on.
    assert (off <= step * (1.0 if blocks.symmetric else 1.001)).all()


@pytest.mark.parametrize("blocks", [b for b in LAYOUTS if b.bits == 4], ids=str)
def test_a_search_is_closer_in_all_and_farther_in_no_block(blocks):
    values = random_rows()
    searched, rounded = (squared_error(values, blocks, method) for method in ("search", "nearest"))
    assert (searched <= rounded * (1 + 1e-5)).all()
    assert searched.sum() < 0.95 * rounded.sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("blocks", LAYOUTS, ids=str)
def test_awkward_blocks_stay_finite_and_zero_stays_zero(blocks, method):
    values = torch.zeros(6, 300)
    values[1] = 1e-40  # below the smallest normal number
    values[2, 5] = 1e30
    values[3, 5] = -1e30
    values[4] = 2.5  # all alike
    values[5, ::2] = -0.0
    found = dequantize(quantize(values, blocks, METHODS[method]), blocks, 300)
    assert found.isfinite().all()
    assert (found[0] == 0).all() and (found[5] == 0).all() and (found[2, 6:] == 0).all()
    assert torch.allclose(found[2:5], values[2:5], rtol=0.07)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_quantized_like_the_same_row_alone(method):
    values, blocks = random_rows(rows=300, columns=1000), Blocks(4, 32, symmetric=False)
    whole = quantize(values, blocks, METHODS[method])
    for row in (0, 64, 65, 299):
        alone = quantize(values[row : row + 1], blocks, METHODS[method])
        assert torch.equal(whole.codes[row], alone.codes[0])
        assert torch.equal(whole.scales[row], alone.scales[0])
        assert torch.equal(whole.zero_points[row], alone.zero_points[0])


def test_narrow_dtypes_are_taken_as_they_are():
    values = random_rows().bfloat16()
    found, wide = (quantize(v, Blocks(4, 32), METHODS["search"]) for v in (values, values.float()))
    assert torch.equal(found.codes, wide.codes) and torch.equal(found.scales, wide.scales)
