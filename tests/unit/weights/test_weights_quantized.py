"""Quantized plans and streams: which matrix is stored how, where, and that the bytes are those."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
import torch
from tiny_checkpoints import CONFIGS, DTYPES, random_weights, write_checkpoint

from llama_export.checkpoint import open_checkpoint
from llama_export.errors import CheckpointError, OptionError
from llama_export.quantize import METHODS, Blocks, dequantize, pack, quantize
from llama_export.weights import plan_weights, write_weights
from llama_export.weights.precision import Quantization, parse_keep

EVEN = dataclasses.replace(CONFIGS["gqa"], hidden_size=64, intermediate_size=128)
BIASED = dataclasses.replace(EVEN, attention_bias=True, mlp_bias=True)


def plan_of(folder, quantization, config=EVEN, stored="bfloat16", weights=None):
    checkpoint = open_checkpoint(write_checkpoint(folder, config, stored, weights=weights))
    return checkpoint, plan_weights(checkpoint, None, None, quantization)


def written(checkpoint, plan, folder):
    folder.mkdir()
    _, digests = write_weights(checkpoint, plan, folder, lambda _: None)
    (location,) = plan.data_files
    data = (folder / location).read_bytes()
    assert digests[location].sha256 == hashlib.sha256(data).hexdigest()
    assert digests[location].size_bytes == len(data) == plan.total_bytes
    return data


def test_matrices_that_read_the_same_are_one_and_the_rest_is_float32(tmp_path):
    _, plan = plan_of(tmp_path / "from", Quantization("int4"))
    layer = "model.layers.2."
    blocks = {
        name.removeprefix(layer): w.blocks for name, w in plan.weights.items() if name.startswith(layer)
    }
    assert blocks == {
        "self_attn.qkv_proj.weight": Blocks(4, 32),
        "self_attn.o_proj.weight": Blocks(4, 32),
        "mlp.gate_up_proj.weight": Blocks(4, 32),
        "mlp.down_proj.weight": Blocks(4, 32),
        "input_layernorm.weight": None,
        "post_attention_layernorm.weight": None,
    }
    assert plan.weights["model.norm.weight"].dtype == torch.float32
    assert plan.weights["lm_head.weight"].blocks == Blocks(8, 32)  # its error is the logits' own
    assert plan.weights["model.embed_tokens.weight"].blocks == Blocks(4, 32)
    assert (plan.precision, plan.model_name, plan.mode) == ("int4", "model_q4.onnx", "copy")


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_step_must_read_codes_and_short_scales(tmp_path, symmetric):
    checkpoint, plan = plan_of(tmp_path / "from", Quantization("int4", symmetric=symmetric))
    wanted = 0
    for name, weight in plan.weights.items():
        values = weight.source.shape[0] * (weight.source.shape[1] if len(weight.source.shape) > 1 else 1)
        if weight.blocks is None:
            wanted += 4 * values
        elif name != "model.embed_tokens.weight":
            blocks, bits = values // weight.blocks.size, weight.blocks.bits
            wanted += values * bits // 8 + 2 * blocks + (0 if symmetric else blocks * bits // 8)
    assert 0 <= plan.step_bytes(tied=False) - wanted <= 64 * len(plan.weights)  # where arrays begin
    data = written(checkpoint, plan, tmp_path / "to")
    for name, weight in plan.weights.items():
        if weight.blocks is not None:
            part, offset = weight.parts[1]
            scales = torch.frombuffer(bytearray(data[offset : offset + part.nbytes]), dtype=torch.float32)
            assert torch.all(scales.view(torch.int32) & ((1 << 13) - 1) == 0), name  # float16's bits


def test_a_tied_table_is_the_head_too(tmp_path):
    _, plan = plan_of(tmp_path / "from", Quantization("int4"), CONFIGS["mha_tied"])
    assert plan.weights["model.embed_tokens.weight"].blocks == Blocks(8, 16)  # 48 columns


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_the_file_holds_the_quantized_checkpoint(tmp_path, precision, symmetric, stored):
    quantization = Quantization(precision, 64, symmetric)
    checkpoint, plan = plan_of(tmp_path / "from", quantization, BIASED, stored)
    data, end = written(checkpoint, plan, tmp_path / "to"), 0
    for name, placed in plan.weights.items():
        assert placed.offset >= end and placed.offset % 64 == 0
        end = placed.offset + placed.nbytes
        members = [checkpoint.tensors[member].read() for member in plan.joined.get(name, (name,))]
        values = torch.cat(members)
        if placed.blocks is None:
            assert data[placed.offset : end] == values.float().numpy().tobytes()
            continue
        found = quantize(values, placed.blocks, METHODS["search"])
        arrays = [pack(found.codes, placed.blocks.bits), found.scales]
        if found.zero_points is not None:
            arrays.append(pack(found.zero_points, placed.blocks.bits))
        for (part, offset), array in zip(placed.parts, arrays, strict=True):
            assert tuple(array.shape) == part.shape
            assert offset % 64 == 0 and offset + part.nbytes <= end
            assert data[offset : offset + part.nbytes] == array.numpy().tobytes()


def test_a_large_matrix_is_quantized_in_pieces_like_in_one(tmp_path, monkeypatch):
    monkeypatch.setattr("llama_export.checkpoint.tensor.PIECE_BYTES", 1 << 10)
    checkpoint, plan = plan_of(tmp_path / "from", Quantization("int4", symmetric=False))
    pieces = written(checkpoint, plan, tmp_path / "pieces")
    monkeypatch.undo()
    assert written(checkpoint, plan, tmp_path / "whole") == pieces


def test_the_last_of_the_patterns_that_match_counts(tmp_path):
    keep = parse_keep("layers.1.*=int8, *.down_proj=float32 ,lm_head=bfloat16")
    _, plan = plan_of(tmp_path / "from", Quantization("int4", keep=keep))
    weights = plan.weights
    assert weights["model.layers.1.self_attn.qkv_proj.weight"].blocks.bits == 8
    assert weights["model.layers.0.self_attn.qkv_proj.weight"].blocks.bits == 4
    assert weights["model.layers.1.mlp.down_proj.weight"].dtype == torch.float32
    assert weights["lm_head.weight"].dtype == torch.bfloat16


def test_what_is_stored_in_two_ways_stays_two(tmp_path):
    _, plan = plan_of(tmp_path / "from", Quantization("int4", keep=(("layers.0.self_attn.k_proj", "int8"),)))
    assert plan.weights["model.layers.0.self_attn.k_proj.weight"].blocks.bits == 8
    assert "model.layers.0.self_attn.qkv_proj.weight" not in plan.weights
    assert "model.layers.1.self_attn.qkv_proj.weight" in plan.weights


def test_columns_that_blocks_do_not_divide_are_said(tmp_path):
    _, plan = plan_of(tmp_path / "from", Quantization("int4", 64), CONFIGS["gqa"])
    assert plan.notes[0] == (
        "embed_tokens: rows of 42 do not divide by the block size, 64; "
        "they stay float32, since no block divides them"
    )
    assert all("the last block of a row is shorter" in note for note in plan.notes[1:])
    named = {name for note in plan.notes for name in note.partition(":")[0].split(", ")}
    assert named >= {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "lm_head"}
    assert plan.weights["model.embed_tokens.weight"].blocks is None
    assert plan.weights["model.layers.0.mlp.down_proj.weight"].blocks == Blocks(4, 64)


@pytest.mark.parametrize("text", ["lm_head", "=int8", "lm_head=int3", "lm_head=int8,,", "lm_head:int8"])
def test_a_pattern_needs_a_precision_that_exists(text):
    with pytest.raises(OptionError, match="needs pattern=precision with one of int4, int8, float32"):
        parse_keep(text)


@pytest.mark.parametrize("pattern", ["layers.7.*", "lm_heads", "model.norm", "*.bias"])
def test_a_pattern_that_matches_nothing_is_refused(tmp_path, pattern):
    with pytest.raises(OptionError, match="no matrix of the checkpoint matches") as refused:
        plan_of(tmp_path / "from", Quantization("int4", keep=((pattern, "int8"),)))
    assert "model.layers" in refused.value.hint or "lm_head" in refused.value.hint


@pytest.mark.parametrize("mode", ["link", "beside"])
def test_linked_weights_cannot_be_quantized(tmp_path, mode):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "from", EVEN))
    with pytest.raises(OptionError, match=f"--weights {mode} keeps the checkpoint's bytes, --precision int4"):
        plan_weights(checkpoint, mode, None, Quantization("int4"))


@pytest.mark.parametrize(("option", "value"), [("block_size", 48), ("block_size", 0), ("method", "best")])
def test_a_value_that_is_not_allowed_is_named(option, value):
    with pytest.raises(OptionError, match=str(value)):
        Quantization("int4", **{option: value})


def test_nan_is_refused_before_it_is_quantized(tmp_path):
    weights = random_weights(EVEN)
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
    checkpoint, plan = plan_of(tmp_path / "from", Quantization("int4"), stored="float32", weights=weights)
    with pytest.raises(CheckpointError, match=r"gate_up_proj.weight holds NaN"):
        written(checkpoint, plan, tmp_path / "to")


def test_the_values_of_a_quantized_matrix_are_near_the_checkpoints(tmp_path):
    checkpoint, plan = plan_of(tmp_path / "from", Quantization("int8"))
    placed = plan.weights["lm_head.weight"]
    want = checkpoint.tensors["lm_head.weight"].read().float()
    found = dequantize(quantize(want, placed.blocks, METHODS["search"]), placed.blocks, want.shape[1])
    assert (found - want).abs().max() < 0.01 * want.abs().max()
