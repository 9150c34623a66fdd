"""NaN and Inf are found wherever they stand; large finite values are not mistaken for them."""

from __future__ import annotations

import pytest
import torch

from llama_export.checkpoint import nonfinite

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("size", [1, 2, 37, 1027])
def test_one_bad_value_is_found_in_every_place(dtype, value, size):
    for index in range(0, size, max(1, size // 41)):
        tensor = torch.randn(size).to(dtype)
        assert not nonfinite(tensor)
        tensor[index] = value
        assert nonfinite(tensor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [0, 70_001, 140_000, 210_000, 299_999])
def test_found_when_several_threads_share_the_work(dtype, index):
    tensor = torch.ones(300_000, dtype=dtype)
    tensor[index] = float("nan")
    assert nonfinite(tensor.view(300, 1000))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_whose_sum_overflows_are_finite(dtype):
    largest = torch.finfo(dtype).max
    assert not nonfinite(torch.full((64, 64), largest, dtype=dtype))
    assert not nonfinite(torch.full((64, 64), -largest, dtype=dtype))


def test_infinities_of_both_signs_do_not_cancel():
    assert nonfinite(torch.tensor([float("inf"), float("-inf"), 1.0]))


def test_nothing_is_finite():
    assert not nonfinite(torch.empty(0, 4))
