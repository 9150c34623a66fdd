"""The ladder goes red where it must: faults are put into bundles, and the lowest rung that can tell does."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from graph_faults import (
    counts_positions_from_one_when_decoding,
    counts_trailing_padding,
    hides_no_leading_padding,
    not_a_number,
    other_layers_past,
    rope_theta,
    sees_one_too_many,
    sees_the_whole_chunk,
    swaps_k_and_v,
    transposes_the_heads,
    upper_left_mask,
)
from tiny_checkpoints import CONFIGS, random_weights, write_checkpoint

from llama_export import pipeline
from llama_export.checkpoint import open_checkpoint
from llama_export.errors import OptionError, ParityError
from llama_export.parity import verify, verify_bundle
from llama_export.parity.ladder import LADDER
from llama_export.parity.page import page
from llama_export.parity.report import TokenChoice
from llama_export.parity.rungs.greedy import judge
from llama_export.recipe import Recipe
from llama_runtime.errors import LlamaRuntimeError
from llama_runtime.session import Session

CONFIG = CONFIGS["gqa"]
# Of a bundle that gives logits alone.
EXTRAS = {"learned prompt", "hidden states", "attentions", "cosine", "own kernels"}
RUNGS = tuple(rung.name for rung in LADDER if rung.name not in EXTRAS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("faults") / "checkpoint", CONFIG)


@pytest.fixture
def export(checkpoint, tmp_path):
    """Export without verification: the fault is for the test to find."""

    def run(attention="flash", weights="link"):
        pipeline.export(checkpoint, tmp_path / "bundle", recipe=Recipe(attention, weights, verify=False))
        return tmp_path / "bundle"

    return run


def assert_blamed(report, rung):
    """Everything below the rung is green, itself red, everything above not measured."""
    index = RUNGS.index(rung)
    rungs = [r for r in report.rungs if r.name != "own kernels"]  # there where they were built
    assert tuple(r.name for r in rungs) == RUNGS
    assert all(r.passed for r in rungs[:index] if r.needed), rungs
    assert rungs[index].red, rungs
    assert rungs[index].measured is not None
    assert all(r.measured is None and not r.passed for r in rungs[index + 1 :])
    assert not report.passed
    assert report.first_failure().startswith(f"{rung}: measured ")
    plain = report.to_dict()
    assert plain["passed"] is False
    assert all(r["measured"] is None for r in plain["rungs"][index + 1 :])


# Weights


def test_a_sound_bundle_is_green(export, checkpoint):
    assert verify(export(), checkpoint).passed


def place_of(bundle, name, model="onnx/model.onnx"):
    graph = onnx.load(bundle / model, load_external_data=False).graph
    (tensor,) = (t for t in graph.initializer if t.name == name)
    return {entry.key: entry.value for entry in tensor.external_data}


def test_a_zeroed_weight_is_found_by_hash_and_by_value(export, checkpoint):
    bundle = export(weights="copy")
    place = place_of(bundle, "model.layers.1.self_attn.q_proj.weight")
    with (bundle / "onnx" / place["location"]).open("r+b") as stream:
        stream.seek(int(place["offset"]))
        stream.write(bytes(int(place["length"])))
    with pytest.raises(LlamaRuntimeError, match=r"onnx/model\.onnx_data"):
        verify(bundle, checkpoint)
    report = verify_bundle(bundle, open_checkpoint(checkpoint))
    assert_blamed(report, "weights")
    assert report.rungs[0].measured == 96 * 42
    assert (report.blame.layer, report.blame.tensor) == (1, "model.layers.1.self_attn.q_proj.weight")


def test_one_flipped_bit_is_found(export, checkpoint):
    bundle = export(weights="copy")
    place = place_of(bundle, "model.norm.weight")
    with (bundle / "onnx" / place["location"]).open("r+b") as stream:
        stream.seek(int(place["offset"]) + 8)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))
    report = verify_bundle(bundle, open_checkpoint(checkpoint))
    assert_blamed(report, "weights")
    assert report.rungs[0].measured == 1


def test_what_float16_made_infinite_is_found(checkpoint, tmp_path):
    """The cast gives just that, so equality with it proves nothing."""
    weights = random_weights(CONFIG)
    source = write_checkpoint(tmp_path / "source", CONFIG, weights=weights)
    recipe = Recipe("flash", "copy", "float16", verify=False)
    pipeline.export(source, tmp_path / "bundle", recipe=recipe)
    weights["model.norm.weight"][3] = 70000.0
    large = write_checkpoint(tmp_path / "large", CONFIG, weights=weights)
    place = place_of(tmp_path / "bundle", "model.norm.weight", "onnx/model_fp16.onnx")
    with (tmp_path / "bundle/onnx" / place["location"]).open("r+b") as stream:
        stream.seek(int(place["offset"]) + 2 * 3)
        stream.write(np.array([np.inf], np.float16).tobytes())
    report = verify_bundle(tmp_path / "bundle", open_checkpoint(large))
    assert_blamed(report, "weights")
    assert report.rungs[0].measured == 1
    assert (report.blame.layer, report.blame.tensor) == (None, "model.norm.weight")


@pytest.mark.parametrize("weights", ["link", "copy"])
def test_swapped_weights_of_one_shape_are_found(export, checkpoint, weights):
    bundle = export(weights=weights)
    file = bundle / "onnx/model.onnx"
    model = onnx.load(file, load_external_data=False)
    tensors = {t.name: t for t in model.graph.initializer}
    key, value = (tensors[f"model.layers.2.self_attn.{part}_proj.weight"] for part in "kv")
    held = [onnx.StringStringEntryProto.FromString(e.SerializeToString()) for e in key.external_data]
    del key.external_data[:]
    key.external_data.extend(value.external_data)
    del value.external_data[:]
    value.external_data.extend(held)
    file.write_bytes(model.SerializeToString())
    assert_blamed(verify_bundle(bundle, open_checkpoint(checkpoint)), "weights")


def test_another_checkpoint_of_the_same_shape_is_not_the_source(export, tmp_path):
    other = write_checkpoint(tmp_path / "other", CONFIG, weights=random_weights(CONFIG, seed=1))
    bundle = export()
    with pytest.raises(OptionError, match=r"model\.safetensors: is not a file that"):
        verify(bundle, other)
    assert_blamed(verify_bundle(bundle, open_checkpoint(other)), "weights")


CONTEXT = "self_attn.o_proj input"
FAULTS = [
    (rope_theta, "flash", "attention", 0, CONTEXT),
    (rope_theta, "sdpa", "attention", 0, CONTEXT),
    (rope_theta, "eager", "attention", 0, CONTEXT),
    (sees_one_too_many, "sdpa", "attention", 0, CONTEXT),
    (sees_one_too_many, "eager", "attention", 0, CONTEXT),
    (not_a_number, "flash", "attention", 0, "input_layernorm"),
    (swaps_k_and_v, "sdpa", "prefill", 1, CONTEXT),
    (swaps_k_and_v, "flash", "prefill", 1, CONTEXT),
    (transposes_the_heads, "eager", "prefill", 2, CONTEXT),
    (transposes_the_heads, "flash", "prefill", 2, CONTEXT),
    (other_layers_past, "sdpa", "decode", 0, CONTEXT),
    (other_layers_past, "eager", "decode", 0, CONTEXT),
    (counts_positions_from_one_when_decoding, "sdpa", "decode", 0, CONTEXT),
    (upper_left_mask, "sdpa", "decode", 0, CONTEXT),
    (upper_left_mask, "eager", "decode", 0, CONTEXT),
    (sees_the_whole_chunk, "sdpa", "chunked prefill", 0, CONTEXT),
    (sees_the_whole_chunk, "eager", "chunked prefill", 0, CONTEXT),
    (hides_no_leading_padding, "flash", "left-padded batch", 0, CONTEXT),
    (counts_trailing_padding, "flash", "right-padded batch", 0, CONTEXT),
]


@pytest.fixture
def build_with(monkeypatch, graph_of):
    """Put a fault into every graph that the pipeline builds."""

    def patch(fault):
        def build(config, path, extras):
            model = graph_of(config, path, extras)
            fault(model, path)
            return model

        monkeypatch.setattr(pipeline, "build_graph", build)

    return patch


@pytest.mark.parametrize(
    ("fault", "path", "rung", "layer", "tensor"), FAULTS, ids=lambda v: getattr(v, "__name__", str(v))
)
def test_a_fault_of_the_graph_is_blamed_on_rung_and_layer(
    export, checkpoint, build_with, fault, path, rung, layer, tensor
):
    build_with(fault)
    report = verify_bundle(export(path), open_checkpoint(checkpoint))
    assert_blamed(report, rung)
    assert (report.blame.rung, report.blame.layer) == (rung, layer)
    assert report.blame.tensor == f"model.layers.{layer}.{tensor}"
    assert f"part in layer {layer}: {report.blame.tensor} differs by" in report.blame.sentence
    assert report.blame.sentence in page(report, "bundle")


def test_a_stale_cache_of_the_runtime_is_no_fault_of_a_layer(export, checkpoint, monkeypatch):
    """Every decode writes over the token before it; the graph itself, fed directly, is right."""
    decode = Session.decode

    def stale(session, token_ids, cache):
        logits = decode(session, token_ids, cache)
        cache.length -= 1
        return logits

    monkeypatch.setattr(Session, "decode", stale)
    report = verify_bundle(export(), open_checkpoint(checkpoint))
    assert_blamed(report, "decode")
    assert (report.blame.layer, report.blame.tensor) == (None, None)
    assert "the fault is in how the runtime feeds" in report.blame.sentence


# What an export does about it


@pytest.mark.parametrize("weights", ["link", "copy"])
def test_a_red_export_publishes_nothing_and_keeps_what_failed(checkpoint, tmp_path, build_with, weights):
    build_with(rope_theta)
    with pytest.raises(ParityError, match=r"attention: measured .*; nothing was published") as error:
        pipeline.export(checkpoint, tmp_path / "bundle", recipe=Recipe("flash", weights))
    assert error.value.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.failed"]
    assert "bundle.failed" in error.value.hint
    facts = json.loads((tmp_path / "bundle.failed/parity.json").read_text())
    assert facts["blame"]["tensor"] == "model.layers.0.self_attn.o_proj input"
    assert facts["blame"]["sentence"] in (tmp_path / "bundle.failed/parity.html").read_text()
    report = verify_bundle(tmp_path / "bundle.failed", open_checkpoint(checkpoint))
    assert_blamed(report, "attention")


def test_a_red_export_leaves_the_bundle_that_stood_there(checkpoint, tmp_path, build_with, export):
    bundle = export()
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    build_with(rope_theta)
    for _ in range(2):  # the second replaces the first's failure
        with pytest.raises(ParityError):
            pipeline.export(checkpoint, bundle, force=True)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "bundle.failed"]
    assert verify(bundle, checkpoint).passed


def test_a_red_export_beside_leaves_the_checkpoint_as_it_was(tmp_path, build_with):
    folder = write_checkpoint(tmp_path / "checkpoint", CONFIG)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    build_with(rope_theta)
    with pytest.raises(ParityError):
        pipeline.export(folder, recipe=Recipe("flash", "beside"))
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before
    assert not (folder / "manifest.json").exists()
    assert not (folder / "onnx").exists()


# The greedy rung, whose faults the logits show first


def greedy(tokens, logits, error):
    rows = [np.sort(row) for row in np.array(logits)]
    return judge(
        [
            tuple(
                TokenChoice(token, int(np.argmax(want)), row[-1] - row[-2], row[-1] - want[token])
                for token, want, row in zip(tokens, logits, rows, strict=True)
            )
        ],
        error,
    )


def test_a_token_that_the_reference_would_not_choose_is_wrong():
    assert greedy([0, 2], [[3.0, 1.0, 0.0], [0.0, 3.0, 1.0]], error=0.1).value == 1


def test_a_near_tie_is_reported_and_not_wrong():
    found = greedy([0, 2], [[3.0, 1.0, 0.0], [0.0, 3.0, 2.9]], error=0.1)
    assert found.value == 0
    assert found.detail == "2 tokens; near ties decided otherwise: 1"


def test_a_near_tie_excuses_its_two_tokens_alone():
    """The reference hesitates between tokens 1 and 2; that is no excuse for token 0."""
    assert greedy([0], [[-9.0, 3.0, 2.9]], error=0.1).value == 1
