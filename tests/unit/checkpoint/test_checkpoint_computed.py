"""Tensors made of others, compared with what torch makes of the same values; read in pieces of any size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llama_export.checkpoint import computed, tensor
from llama_export.checkpoint.safetensors import read_header
from llama_export.checkpoint.tensor import read_bytes

HEADS, HEAD_DIM, HIDDEN = 3, 8, 10


@pytest.fixture(params=[1, 100, 1000, 8 << 20])
def piece_bytes(request, monkeypatch) -> int:
    monkeypatch.setattr(tensor, "PIECE_BYTES", request.param)
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def values(request) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (7, 5), "b": (7, 9), "c": (4, 5), "q": (HEADS * HEAD_DIM, HIDDEN), "x": (17,), "y": (18,)}
    return {name: torch.randn(s, generator=generator).to(request.param) for name, s in shapes.items()}


@pytest.fixture
def stored(tmp_path, values):
    save_file(values, tmp_path / "model.safetensors")
    return read_header(tmp_path / "model.safetensors", "model.safetensors")


def rotated_pairs(meta: torch.Tensor) -> torch.Tensor:
    """Written out: the evens of each head, then its odds."""
    heads = [meta[h * HEAD_DIM : (h + 1) * HEAD_DIM] for h in range(HEADS)]
    return torch.cat([torch.cat([head[0::2], head[1::2]]) for head in heads])


CASES = {
    "rows": (lambda s: computed.join_rows("n", [s["a"], s["c"]]), lambda v: torch.cat([v["a"], v["c"]])),
    "columns": (
        lambda s: computed.join_columns("n", [s["a"], s["b"]]),
        lambda v: torch.cat([v["a"], v["b"]], dim=1),
    ),
    "transposed": (lambda s: computed.transpose("n", s["b"]), lambda v: v["b"].T),
    "rotary": (
        lambda s: computed.interleaved_to_half("n", s["q"], HEAD_DIM),
        lambda v: rotated_pairs(v["q"]),
    ),
    "flat": (
        lambda s: computed.join_flat("n", [s["x"], s["y"]], (5, 7)),
        lambda v: torch.cat([v["x"], v["y"]]).view(5, 7),
    ),
    "rows of others": (
        lambda s: computed.join_rows("n", [computed.transpose("", s[k]) for k in "ab"]),
        lambda v: torch.cat([v["a"].T, v["b"].T]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_torch_makes_of_the_same_values(case, stored, values, piece_bytes):
    make, expect = CASES[case]
    lazy, want = make(stored), expect(values)
    assert torch.equal(lazy.read(), want)
    pieces = list(lazy.pieces())
    assert torch.equal(torch.cat(pieces), want)
    assert (lazy.name, lazy.dtype, lazy.shape) == ("n", want.dtype, tuple(want.shape))
    assert lazy.nbytes == want.nbytes
    row_bytes = want[0].nbytes
    for piece in pieces:
        assert piece.is_contiguous()
        assert piece.nbytes <= max(piece_bytes, HEAD_DIM * row_bytes)


@pytest.mark.parametrize("case", CASES)
def test_every_stored_byte_is_read_once_through_the_callers_read(case, stored, piece_bytes):
    seen: list[tuple[int, int]] = []

    def read(file: Path, offset: int, nbytes: int) -> torch.Tensor:
        seen.append((offset, offset + nbytes))
        return read_bytes(file, offset, nbytes)

    lazy = CASES[case][0](stored)
    for _ in lazy.pieces(read):
        pass
    bytes_read = sorted(byte for begin, end in seen for byte in range(begin, end))
    expected = sorted(byte for s in lazy.stored for byte in range(s.offset, s.offset + s.nbytes))
    assert bytes_read == expected


def test_stored_rows_and_pieces(stored, values, piece_bytes):
    for name, lazy in stored.items():
        assert lazy.stored == (lazy,)
        assert torch.equal(lazy.read(), values[name])
        assert torch.equal(torch.cat(list(lazy.pieces())), values[name])
        assert torch.equal(lazy.rows(2, 4), values[name][2:4])
    for run in list(stored["q"].pieces(multiple=HEAD_DIM)):
        assert len(run) % HEAD_DIM == 0
