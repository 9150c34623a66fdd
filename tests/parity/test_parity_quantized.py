"""int8 and int4 bundles against transformers, whose weights are what our own reading of the blocks says."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from parity_cases import QUANTIZED, difference, logits_of
from talking_checkpoint import CONFIG as HEADS
from tiny_checkpoints import CONFIGS, VARIANTS, write_checkpoint
from tiny_heads import ARCHITECTURES, write_head_checkpoint

from llama_export import pipeline
from llama_export.checkpoint import open_checkpoint
from llama_export.parity import verify_bundle
from llama_export.recipe import Recipe
from llama_runtime.opening import open_graph, open_session

ACTIVATIONS = 0.2  # rounded to int8 by one scale a block
EXACT = 1e-4
CONFIG = CONFIGS["gqa"]


def arrays_of(folder, manifest):
    model = onnx.load(folder / manifest.model.path, load_external_data=False)
    found = {}
    for tensor in model.graph.initializer:
        onnx.external_data_helper.load_external_data_for_tensor(
            tensor, str(folder / "onnx")
        ) if tensor.external_data else None
        found[tensor.name] = onnx.numpy_helper.to_array(tensor)
    return model, found


def matrix(codes, scales, zeros, bits, columns):
    """[N, K] of an operator's arrays, one block after the other."""
    rows, count = scales.shape
    if bits == 4:
        codes = np.stack((codes & 15, codes >> 4), axis=-1)
    codes = codes.reshape(rows, count, -1).astype(np.float32)
    if zeros is None:
        zero = np.full((rows, count), 1 << (bits - 1))
    elif bits == 4:
        zero = np.stack((zeros & 15, zeros >> 4), axis=-1).reshape(rows, -1)[:, :count]
    else:
        zero = zeros
    return ((codes - zero[..., None]) * scales[..., None]).reshape(rows, -1)[:, :columns]


def stored_matrices(folder, manifest, config):
    """The checkpoint's names of all matrices to the values that the bundle's operators read."""
    model, arrays = arrays_of(folder, manifest)
    found = {}
    for node in model.graph.node:
        if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
            continue
        facts = {entry.name: entry.i for entry in node.attribute}
        first = 1 if node.op_type == "MatMulNBits" else 0
        codes, scales = arrays[node.input[first]], arrays[node.input[2]]
        zeros = arrays[node.input[3]] if len(node.input) > 3 and node.input[3] else None
        columns = facts.get("K", codes.shape[-1] * 8 // facts["bits"])
        name = node.input[first].rpartition("_q")[0]
        found[name] = matrix(codes, scales, zeros, facts["bits"], columns)
    shapes, cut = config.tensor_shapes(), {}
    for name, values in found.items():
        members = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
        whole = name.split(".")[-2]
        begin = 0
        for member in members.get(whole, (whole,)):
            part = name.replace(whole, member)
            cut[part] = values[begin : begin + shapes[part][0]]
            begin += shapes[part][0]
        assert begin == len(values)
    return cut


@pytest.fixture(params=QUANTIZED, ids=str)
def made(request, export_of):
    return export_of(request.param)


def oracle_of(made):
    oracle = copy.deepcopy(made.oracle)
    folder, manifest = made.result.output, made.result.manifest
    weights = stored_matrices(folder, manifest, (CONFIGS | VARIANTS)[made.case.config])
    state = {name: torch.from_numpy(values) for name, values in weights.items()}
    unexpected = oracle.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected and len(state) >= 7
    return oracle


def test_the_bundle_computes_what_transformers_does_with_its_weights(made):
    oracle = oracle_of(made)
    ids = np.random.default_rng(5).integers(0, oracle.config.vocab_size, (1, 39))
    cache = made.session.new_cache(capacity=39)
    got = made.session.prefill(ids, cache, all_logits=True)
    want = logits_of(oracle, ids)
    assert 0 < difference(got, want) < ACTIVATIONS
    cache = made.session.new_cache(capacity=39)
    made.session.prefill(ids[:, :-1], cache, text_tokens=39)
    assert difference(made.session.decode(ids[:, -1], cache), want[:, -1]) < ACTIVATIONS


def test_with_activations_as_they_are_it_is_exact(made):
    """So nothing but their rounding is in the difference."""
    oracle, manifest = oracle_of(made), made.result.manifest
    model = onnx.load(made.result.output / manifest.model.path, load_external_data=False)
    for node in model.graph.node:
        for entry in node.attribute:
            if entry.name == "accuracy_level":
                entry.i = 0
    run = open_graph(made.result.output, manifest, model.SerializeToString(), threads=1)
    ids = np.random.default_rng(6).integers(0, oracle.config.vocab_size, (1, 39))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(39)[None]}
    shape = manifest.cache
    empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_dim), np.float32)
    for i in range(shape.num_hidden_layers):
        feeds |= {name.format(i=i): empty for name in (shape.key_name, shape.value_name)}
    limit = 1e-2 if "float16" in (made.case.keep or "") else EXACT  # what is kept narrow is rounded too
    assert difference(run(feeds)["logits"], logits_of(oracle, ids)) < limit


def test_the_report_is_green_and_knows_what_it_cost(made):
    rungs = {rung.name: rung for rung in made.result.report.rungs}
    assert made.result.report.passed
    for name in ("weights", "one layer", "KL divergence", "top-1 agreement", "perplexity"):
        assert rungs[name].passed, rungs[name]
    assert rungs["one layer"].tolerance == EXACT
    assert rungs["KL divergence"].measured > 0


def test_files_are_named_as_transformers_js_looks_for_them(made):
    name = {"int4": "model_q4.onnx", "int8": "model_quantized.onnx"}[made.case.precision]
    manifest = made.result.manifest
    assert manifest.model.path == f"onnx/{name}"
    assert manifest.precision == made.case.precision
    config = json.loads((made.result.output / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {name: 1}


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("task", ARCHITECTURES)
def test_every_head_can_be_quantized(tmp_path, task, precision):
    write_head_checkpoint(tmp_path / "from", task)
    recipe = Recipe("flash", None, precision)
    made = pipeline.export(tmp_path / "from", tmp_path / "bundle", recipe=recipe)
    assert made.report.passed
    graph = onnx.load(tmp_path / "bundle" / made.manifest.model.path, load_external_data=False).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulNBits") == 4 * HEADS.num_hidden_layers
    divides = HEADS.hidden_size % 16 == 0
    assert operators.count("GatherBlockQuantized") == divides and operators.count("Gather") >= (not divides)
    head = {"text-classification": "score.weight", "question-answering": "qa_outputs.weight"}.get(task)
    assert head is None or head in {tensor.name for tensor in graph.initializer}


# Faults: each is put into a bundle that was not verified, and the weights' rung names it.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("faults") / "checkpoint", CONFIG)


@pytest.fixture
def bundle(checkpoint, tmp_path):
    recipe = Recipe("flash", None, "int4", verify=False)
    return pipeline.export(checkpoint, tmp_path / "bundle", recipe=recipe).output


def overwrite(bundle, name, data, at=0):
    graph = onnx.load(bundle / "onnx/model_q4.onnx", load_external_data=False).graph
    (tensor,) = (t for t in graph.initializer if t.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    with (bundle / "onnx" / place["location"]).open("r+b") as stream:
        stream.seek(int(place["offset"]) + at)
        stream.write(data if isinstance(data, bytes) else data(int(place["length"])))


def blamed(bundle, checkpoint):
    report = verify_bundle(bundle, open_checkpoint(checkpoint))
    assert report.rungs[0].red and report.blame.rung == "weights"
    return report.blame.tensor, report.rungs[0].measured


QKV = "model.layers.1.self_attn.qkv_proj.weight"


def test_zeroed_codes_are_found(bundle, checkpoint):
    overwrite(bundle, f"{QKV}_q4", bytes)
    assert blamed(bundle, checkpoint)[0] == "model.layers.1.self_attn.q_proj.weight"


def test_one_block_of_another_row_is_found(bundle, checkpoint):
    # 96 rows of q, 32 of k, 32 of v, two blocks of 16 bytes each: the first block of v's third row.
    overwrite(bundle, f"{QKV}_q4", bytes(range(16)), at=(96 + 32 + 2) * 32)
    assert blamed(bundle, checkpoint) == ("model.layers.1.self_attn.v_proj.weight", 32)


def test_a_scale_of_the_wrong_sign_is_found(bundle, checkpoint):
    overwrite(bundle, "model.layers.2.mlp.down_proj.weight_scales", np.float32(-0.03).tobytes(), at=8)
    overwrite(bundle, "model.layers.2.mlp.down_proj.weight_scales", np.float32(0.03).tobytes(), at=12)
    assert blamed(bundle, checkpoint)[0] == "model.layers.2.mlp.down_proj.weight"


def test_a_scale_that_is_no_number_is_found(bundle, checkpoint):
    overwrite(bundle, "lm_head.weight_scales", np.float32(np.nan).tobytes(), at=4)
    assert blamed(bundle, checkpoint) == ("lm_head.weight", 32)


def test_a_session_of_a_quantized_bundle_holds_no_wide_copy(made):
    """The graph reads the blocks as they are: no DequantizeLinear, no Cast of a matrix."""
    graph = onnx.load(made.result.output / made.result.manifest.model.path, load_external_data=False).graph
    kept = made.case.keep or ""
    assert "16" in kept or not [n for n in graph.node if n.op_type == "Cast" and "weight" in n.name]
    assert not [n for n in graph.node if n.op_type == "DequantizeLinear"]
    open_session(made.result.output, made.result.manifest, threads=1)
