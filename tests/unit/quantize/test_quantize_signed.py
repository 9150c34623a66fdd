"""The layouts of DequantizeLinear: what is stored, and that ONNX reads the same values from it."""

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from llama_export.quantize import Blocks, Quantized, Signed, dequantize, encode, quantize
from llama_export.quantize.methods import keep_grid, search_scales

STORED = {"int4": ml_dtypes.int4, "int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}
CASES = [("int4", 32), ("int4", 64), ("int8", 0), ("fp8", 0)]
# Of the row's largest value: half a step, a search cuts off more, and the rounding of scales.
ERRORS = {"int4": 1 / 6, "int8": 0.5 / 127 + 2**-9, "fp8": 2**-4 + 2**-9}


def encoded(rows, layout, method=search_scales):
    return layout.encode(rows, partial(encode, method=method))


def as_onnx_reads(codes, scales, layout):
    """[N, K] float64, from the stored bytes by ml_dtypes' types and ONNX's own arithmetic."""
    raw = codes.numpy()
    if layout.kind == "int4":
        raw = np.stack((raw & 15, raw >> 4), -1).reshape(len(raw), -1).astype(np.int8)
        numbers = np.where(raw > 7, raw - 16, raw).astype(np.float64)
        return numbers * np.repeat(scales.double().numpy(), layout.size, 1)
    return raw.view(STORED[layout.kind]).astype(np.float64) * scales.double().numpy()[:, None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("kind", "size"), CASES)
def test_stored_values_are_close_and_read_alike(kind, size, dtype):
    rows = torch.randn(9, 128, generator=torch.Generator().manual_seed(1)) * 0.02
    layout = Signed(kind, dtype, size)
    codes, scales = encoded(rows, layout)
    assert [(tuple(a.shape), a.dtype) for a in (codes, scales)] == [
        (part.shape, part.dtype) for part in layout.parts((9, 128))
    ]
    found = as_onnx_reads(codes, scales, layout)
    largest = rows.abs().amax(1, keepdim=True).double().numpy()
    assert (np.abs(found - rows.double().numpy()) <= ERRORS[kind] * largest).all()
    decoded = layout.decode(codes, scales)
    assert decoded.dtype == dtype
    assert torch.equal(decoded, torch.from_numpy(found).to(dtype))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_scales_are_positive_whatever_a_row_holds(kind):
    """TensorRT's parser refuses others, even where a row is all zeros."""
    rows = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [-3.0, 1.0], [3.0, -1.0]])
    layout = Signed(kind, torch.float16)
    codes, scales = encoded(rows, layout)
    assert (scales > 0).all()
    assert torch.isfinite(layout.decode(codes, scales)).all()
    assert torch.allclose(layout.decode(codes, scales)[2:].float(), rows[2:], rtol=0.07)


@pytest.mark.parametrize("size", [32, 64])
def test_what_was_rounded_to_four_bits_is_not_rounded_again(size):
    """Blocks that use few of the codes, negative scales and zeros included."""
    torch.manual_seed(3)
    blocks, scales = Blocks(4, 64), torch.randn(7, 2) * 0.01
    codes = torch.randint(0, 16, (7, 2, 64), dtype=torch.uint8)
    codes[1], codes[2], codes[3] = 8, codes[2].clamp(6, 10), 8 + codes[3] % 2 * 3
    wanted = dequantize(Quantized(codes, scales, None), blocks, 128)
    found = quantize(wanted, Blocks(4, size), keep_grid)
    again = dequantize(found, Blocks(4, size), 128)
    assert torch.allclose(again, wanted, rtol=1e-6, atol=0)
    # A search alone does round, or this would show nothing.
    searched = dequantize(quantize(wanted, Blocks(4, size), search_scales), Blocks(4, size), 128)
    assert not torch.allclose(searched, wanted, rtol=1e-6, atol=0)


def test_values_on_no_grid_are_searched_as_ever():
    rows = torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    found, wanted = (quantize(rows, Blocks(4, 32), method) for method in (keep_grid, search_scales))
    assert torch.equal(found.codes, wanted.codes)
    assert torch.equal(found.scales, wanted.scales)


def test_onnx_itself_dequantizes_to_the_same():
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(5))
    layout = Signed("int8", torch.float32)
    codes, scales = encoded(rows, layout)
    made = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["": 24]> g (int8[N,K] w, float[N] s) => (float[N,K] y) '
        "{ y = DequantizeLinear <axis: int = 0> (w, s) }"
    )
    feeds = {"w": codes.numpy().view(np.int8), "s": scales.numpy()}
    assert np.array_equal(ReferenceEvaluator(made).run(None, feeds)[0], layout.decode(codes, scales).numpy())
