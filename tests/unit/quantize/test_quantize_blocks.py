"""The layout of quantized matrices, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from llama_export.quantize import Blocks, Quantized, dequantize, pack, unpack


def test_two_codes_share_a_byte_the_first_in_the_low_half():
    codes = torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)
    assert pack(codes, 4).tolist() == [[0x21, 0x0F]]
    assert pack(codes, 8).tolist() == codes.tolist()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_unpacking_gives_back_what_was_packed(bits, count):
    codes = torch.randint(0, 1 << bits, (3, 5, count), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits, count), codes)


@pytest.mark.parametrize(
    ("blocks", "shapes"),
    [
        (Blocks(4, 32), [(6, 3, 16), (6, 3)]),
        (Blocks(4, 32, symmetric=False), [(6, 3, 16), (6, 3), (6, 2)]),
        (Blocks(8, 64), [(6, 2, 64), (6, 2)]),
        (Blocks(8, 64, symmetric=False), [(6, 2, 64), (6, 2), (6, 2)]),
    ],
)
def test_a_row_has_whole_blocks_and_a_scale_for_each(blocks, shapes):
    parts = blocks.parts((6, 70))
    assert [part.shape for part in parts] == shapes
    assert [part.suffix for part in parts][:2] == [f"_q{blocks.bits}", "_scales"]
    assert [part.nbytes for part in parts][:2] == [
        torch.Size(shapes[0]).numel(),
        4 * torch.Size(shapes[1]).numel(),
    ]


def test_values_are_codes_less_zero_times_the_scale():
    codes = torch.tensor([[[8, 9, 0, 15], [8, 7, 8, 8]]], dtype=torch.uint8)
    scales = torch.tensor([[0.5, 2.0]])
    values = dequantize(Quantized(codes, scales, None), Blocks(4, 4), 6)
    assert values.tolist() == [[0, 0.5, -4, 3.5, 0, -2]]
    zeros = torch.tensor([[8, 7]], dtype=torch.uint8)
    values = dequantize(Quantized(codes, scales, zeros), Blocks(4, 4, symmetric=False), 6)
    assert values.tolist() == [[0, 0.5, -4, 3.5, 2, 0]]
