"""The ladder goes red where it must: faults are put into bundles, and the lowest rung that can tell does."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from tiny_checkpoints import CONFIGS, random_weights, write_checkpoint

from llama_export import pipeline
from llama_export.checkpoint import open_checkpoint
from llama_export.errors import OptionError, ParityError
from llama_export.model import RopeConfig
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
EXTRAS = {"learned prompt", "hidden states", "attentions"}
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
    assert tuple(r.name for r in report.rungs) == RUNGS
    assert all(r.passed for r in report.rungs[:index] if r.needed), report.rungs
    assert report.rungs[index].red, report.rungs
    assert report.rungs[index].measured is not None
    assert all(r.measured is None and not r.passed for r in report.rungs[index + 1 :])
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


# Faults of the graph: each takes a built model and breaks one thing.


def constant(model, array):
    name = f"fault.{len(model.graph.initializers)}"
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(value)
    return value


def insert(model, before, op, *inputs, **attributes):
    """Add a node in front of another and return its output."""
    inputs = [value if isinstance(value, ir.Value) else constant(model, value) for value in inputs]
    attributes = [ir.AttrInt64(name, number) for name, number in attributes.items()]
    node = ir.Node("", op, inputs, attributes, name=f"fault.{op}.{len(model.graph)}")
    node.outputs[0].name = f"{node.name}.out"
    model.graph.insert_before(before, node)
    return node.outputs[0]


def nodes(model, op):
    return [node for node in model.graph if node.op_type == op]


def input_of(model, name):
    return next(value for value in model.graph.inputs if value.name == name)


def rope_theta(model, path):
    """The angles of another base."""
    from llama_export.graph import assemble

    wrong = dataclasses.replace(CONFIG, rope=RopeConfig(rope_theta=10500.0))
    scratch = ir.Graph([], [], nodes=[], opset_imports={"": 18})
    for value in assemble._rotary_tables(scratch, wrong, path).values():
        model.graph.initializers[value.name].const_value = value.const_value


def sees_one_too_many(model, path):
    """The mask's diagonal is one further right: every query sees the token after it."""
    (compare,) = nodes(model, "LessOrEqual")
    compare.replace_input_with(1, insert(model, compare, "Add", compare.inputs[1], np.array(1)))


def not_a_number(model, path):
    """The root of a negative number: a NaN is neither within nor beyond any tolerance."""
    nodes(model, "RMSNormalization")[0].attributes["epsilon"] = ir.AttrFloat32("epsilon", -1e9)


def other_layers_past(model, path):
    """Layer 0 continues layer 1's past and the other way round: nothing is wrong while there is none."""
    first, second = (input_of(model, f"past_key_values.{i}.value") for i in (0, 1))
    uses = [(use, second) for use in first.uses()] + [(use, first) for use in second.uses()]
    for use, value in uses:
        use.node.replace_input_with(use.idx, value)


def sees_the_whole_chunk(model, path):
    """With a past, all of a chunk is visible to each of its tokens: single tokens do not notice."""
    (compare,) = nodes(model, "LessOrEqual")
    own = compare.inputs[1]  # [T, 1]: each query's slot
    past = insert(model, compare, "Shape", input_of(model, "past_key_values.0.key"), start=2, end=3)
    last = insert(model, compare, "ReduceMax", own)
    some = insert(model, compare, "Greater", past, np.array([0]))
    compare.replace_input_with(1, insert(model, compare, "Where", some, last, own))


def hides_no_leading_padding(model, path):
    """GroupQueryAttention without its bias."""
    first, *others = nodes(model, "GroupQueryAttention")
    nothing = insert(model, first, "Mul", first.inputs[10], np.float32(0))
    for node in (first, *others):
        node.replace_input_with(10, nothing)


def counts_trailing_padding(model, path):
    """Every row's tokens end where the batch's do."""
    first, *others = nodes(model, "GroupQueryAttention")
    zeros = insert(model, first, "Mul", first.inputs[5], np.int32(0))  # [B]
    last = insert(model, first, "Sub", first.inputs[6], np.int32(1))
    ends = insert(model, first, "Add", zeros, last)
    for node in (first, *others):
        node.replace_input_with(5, ends)


def layer_gemm(model, weight):
    """The Gemm that reads a weight."""
    return next(n for n in nodes(model, "Gemm") if any(v.name.startswith(weight) for v in n.inputs if v))


def swaps_k_and_v(model, path):
    """In layer 1, what is projected as key is used as value and the other way round."""
    key, value = (layer_gemm(model, f"model.layers.1.self_attn.{part}_proj").outputs[0] for part in "kv")
    uses = [(use, value) for use in key.uses()] + [(use, key) for use in value.uses()]
    for use, other in uses:
        use.node.replace_input_with(use.idx, other)
    common.TopologicalSortPass()(model)


def transposes_the_heads(model, path):
    """In layer 2, what the heads found is joined in the order of the other axis."""
    gemm = layer_gemm(model, "model.layers.2.self_attn.o_proj")
    order = np.arange(96).reshape(6, 16).T.flatten()
    gemm.replace_input_with(0, insert(model, gemm, "Gather", gemm.inputs[0], order, axis=1))


def past_length(model, before):
    return insert(model, before, "Shape", input_of(model, "past_key_values.0.key"), start=2, end=3)


def counts_positions_from_one_when_decoding(model, path):
    """With a past, every position is one too far: without one, rotary embedding could not tell."""
    positions = input_of(model, "position_ids")
    uses = list(positions.uses())
    first = uses[0].node
    some = insert(model, first, "Sign", past_length(model, first))
    late = insert(model, first, "Add", positions, some)
    for use in uses:
        if use.node.op_type != "Shape":
            use.node.replace_input_with(use.idx, late)


def upper_left_mask(model, path):
    """Query t sees the first t + 1 slots, whatever the past."""
    (compare,) = nodes(model, "LessOrEqual")
    own = compare.inputs[1]
    compare.replace_input_with(1, insert(model, compare, "Sub", own, past_length(model, compare)))


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
