"""int8, int4 and fp8 engines: their graphs compute what the eager model does on the values they store."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import external_data_helper, numpy_helper
from played_engine import PlayedEngine
from tiny_checkpoints import CONFIGS, VARIANTS, write_checkpoint
from tiny_heads import write_head_checkpoint

import llama_export
from llama_export.checkpoint import open_checkpoint
from llama_export.engine.lint import lint
from llama_export.engine.options import EngineOptions
from llama_export.engine_export import export_engine
from llama_export.model import GrowingCache, LlamaForCausalLM
from llama_export.recipe import Recipe
from llama_runtime.engine_file import read_engine_file

pytest.importorskip("tensorrt_rtx")
SMALL = {"max_seq": 64, "buckets": (16, 64), "prefill_chunk": 32, "max_batch": 2}
# Blocks of 32 divide both; the tied head, and biases, which are no part of a product in few bits.
EVEN = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
MODELS = {
    "gqa": dataclasses.replace(CONFIGS["gqa"], **EVEN),
    "tied": dataclasses.replace(CONFIGS["mha_tied"], **EVEN),
    "biases": dataclasses.replace(VARIANTS["yarn"], **EVEN),
}
# Of the largest logit. Both compute on the same values; float16 rounds in every layer.
LIMITS = {"fp32": 1e-5, "fp16": 1e-2}
PRECISIONS = ("int8", "int4", "fp8")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("even")
    for name, config in MODELS.items():
        write_checkpoint(folder / "checkpoints" / name, config, "bfloat16", eos_token_id=2)
        llama_export.export(folder / "checkpoints" / name, folder / name, recipe=Recipe(verify=False))
    return folder


def graph_of(source, output, **options):
    done = export_engine(source, output, options=EngineOptions(**SMALL | options), onnx_only=True)
    return done.output / done.added.engine.onnx.path


def stored_values(path):
    """Every weight as the graph's readers get it, by the checkpoint's names: ONNX's own reading of it."""
    model = onnx.load(path)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {name: array.astype(np.float32) for name, array in arrays.items() if "." in name}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        numbers, scales = (arrays[name].astype(np.float32) for name in node.input)
        block = next((a.i for a in node.attribute if a.name == "block_size"), 0)
        wide = np.repeat(scales, block, 1) if block else scales[:, None]
        # What it is widened to is what it is computed in.
        value = (numbers * wide).astype(arrays[node.input[1]].dtype).astype(np.float32)
        found[node.output[0].removesuffix(".wide")] = value
    return model, found


class Reference:
    """The eager model on the values that a graph stores, its head apart from the embeddings."""

    def __init__(self, config, values):
        config = dataclasses.replace(config, tie_word_embeddings=False)
        self.model = LlamaForCausalLM(config).eval()
        state = {name: torch.from_numpy(values[name]) for name in self.model.state_dict()}
        self.model.load_state_dict(state)

    @torch.no_grad()
    def __call__(self, ids, cache=None):
        return self.model(torch.from_numpy(ids), **({} if cache is None else {"cache": cache})).numpy()[:, -1]


CASES = [("int4", name, "fp32") for name in MODELS] + [("int8", "tied", "fp32"), ("fp8", "biases", "fp32")]
CASES += [(precision, "gqa", "fp16") for precision in PRECISIONS]


@pytest.mark.parametrize(("precision", "name", "compute"), CASES)
def test_the_graph_equals_eager_on_the_values_it_stores(bundles, tmp_path, precision, name, compute):
    path = graph_of(bundles / name, tmp_path / "b", precision=precision, compute=compute)
    model, values = stored_values(path)
    assert lint(onnx.load(path, load_external_data=False)) == []
    reference, engine = Reference(MODELS[name], values), PlayedEngine(path)
    engine.fill = 1000.0
    memory, cache = engine.allocate(2), GrowingCache()
    ids = np.random.default_rng(4).integers(0, MODELS[name].vocab_size, (2, 20))

    def step(tokens, past, bucket):
        found = engine.run(0, {
            "input_ids": tokens, "position_ids": np.full((2, 1), past) + np.arange(tokens.shape[1]),
            "write_indices": np.full(2, past), "kv_bucket": np.array([bucket]),
        }, memory)["logits"]  # fmt: skip
        want = reference(tokens, cache)
        assert np.abs(found - want).max() <= LIMITS[compute] * np.abs(want).max()

    step(ids[:, :9], 0, 16)  # prefill, a chunk behind a past, decode in two buckets
    step(ids[:, 9:15], 9, 16)
    step(ids[:, 15:16], 15, 16)
    step(ids[:, 16:17], 16, 64)
    wide = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(wide) == 2 * 7 + 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_stored_in_few_bits_and_what_is_not(bundles, tmp_path, precision):
    path = graph_of(bundles / "tied", tmp_path / "b", precision=precision)
    model = onnx.load(path, load_external_data=False)
    kinds = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    stored = {"int8": ("INT8", "_q8"), "int4": ("INT4", "_q4"), "fp8": ("FLOAT8E4M3FN", "_f8")}[precision]
    assert kinds[f"model.layers.0.mlp.down_proj.weight{stored[1]}"] == stored[0]
    assert kinds["model.layers.0.mlp.down_proj.weight_scales"] == "BFLOAT16"
    # Of a table one row a token is read; the head, which is read whole, has a copy of at least 8 bits.
    assert kinds["model.embed_tokens.weight"] == kinds["model.norm.weight"] == "BFLOAT16"
    assert kinds["lm_head.weight_f8" if precision == "fp8" else "lm_head.weight_q8"] in ("INT8", stored[0])
    onnx.checker.check_model(path)
    places = [external_data_helper.ExternalDataInfo(t) for t in model.graph.initializer if t.external_data]
    size = sum(place.length for place in places)
    assert size < 0.75 * 2 * sum(
        t.nbytes // 2 for t in open_checkpoint(bundles / "checkpoints/tied").tensors.values()
    )


@pytest.mark.parametrize(
    ("precision", "name"), [("int8", "biases"), ("int4", "biases"), ("fp8", "biases"), ("int4", "tied")]
)
def test_it_builds(bundles, tmp_path, precision, name):
    options = EngineOptions(precision=precision, **SMALL)
    done = export_engine(bundles / name, tmp_path / "b", options=options)
    engine = read_engine_file(done.output, precision)
    assert (engine.precision, engine.dtype) == (precision, "bfloat16")
    assert done.added.built.fused is (
        name != "tied"
    )  # three heads over three have no kernel in any precision
    assert engine.plan is not None
    newest = {"int8": "8.0", "int4": "8.0", "fp8": "8.9"}[precision]
    assert engine.compute_capabilities[0] == newest
    assert engine.rebuild[:2] == ("--precision", precision)


def test_a_turing_gpu_gets_int8_in_float16(bundles, tmp_path):
    options = EngineOptions(precision="int8", compute="fp16", compute_capabilities=("7.5",), **SMALL)
    done = export_engine(bundles / "gqa", tmp_path / "b", options=options)
    assert done.added.engine.compute_capabilities == ("7.5",)
    assert done.added.engine.rebuild[:4] == ("--precision", "int8", "--compute", "fp16")


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_the_task_heads_keep_their_own_precision(tmp_path, task):
    write_head_checkpoint(tmp_path / "c", task)
    bundle = llama_export.export(tmp_path / "c", tmp_path / "a", recipe=Recipe(verify=False)).output
    path = graph_of(bundle, tmp_path / "b", precision="int8", buckets=None)
    wide = [n.name for n in onnx.load(path, load_external_data=False).graph.node if "Dequ" in n.op_type]
    assert wide
    assert all(name.startswith("model.layers.") for name in wide)


def test_rows_that_no_block_divides_have_8_bits_and_it_is_said(tmp_path):
    write_checkpoint(tmp_path / "c", CONFIGS["gqa"], "float16", eos_token_id=2)
    done = export_engine(
        tmp_path / "c", tmp_path / "b", options=EngineOptions(precision="int4", **SMALL),
        recipe=Recipe(verify=False), onnx_only=True,
    )  # fmt: skip
    assert "q_proj: rows of 42 do not divide by the block size, 64; they have 8 bits" in "".join(
        done.plan.notes
    )
    names = {
        t.name for t in onnx.load(done.output / "trt/int4.onnx", load_external_data=False).graph.initializer
    }
    assert "model.layers.0.self_attn.q_proj.weight_q8" in names  # 42 columns
    assert "model.layers.0.self_attn.o_proj.weight_q4" in names  # 96


@pytest.fixture(scope="module", params=["int4", "int8", "asymmetric int4"])
def rounded(request, bundles, tmp_path_factory):
    """A bundle of few bits, and one of its matrices as it computes with it."""
    precision = request.param.split()[-1]
    recipe = Recipe(precision=precision, asymmetric="asymmetric" in request.param, verify=False)
    folder = tmp_path_factory.mktemp("rounded") / "b"
    llama_export.export(bundles / "checkpoints/gqa", folder, recipe=recipe)
    return request.param, folder, _gate_of_bundle(folder)  # now: onnx reads no data that others link to


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_bundle_of_few_bits_gives_the_values_that_it_computes_with(rounded, tmp_path, precision):
    kind, bundle, wanted = rounded
    few_bits = {"compute": "fp32"} if precision == "int4" else {}
    _, values = stored_values(graph_of(bundle, tmp_path / "b", precision=precision, **few_bits))
    # Four bits in blocks around zero are taken as they are, all others are rounded again.
    exact = precision == "fp32" or kind == "int4"
    step = np.abs(wanted).max() / 7
    assert (
        np.abs(values["model.layers.1.mlp.gate_proj.weight"] - wanted).max()
        <= (1e-6 if exact else 1.5) * step
    )


def _gate_of_bundle(bundle):
    """[N, K] float32 of a matrix in blocks, by hand from what FORMAT.md says."""
    model = onnx.load(next((bundle / "onnx").glob("model*.onnx")))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    node = next(
        n for n in model.graph.node if "layers.1.mlp.gate_up" in "".join(n.input) and "MatMul" in n.op_type
    )
    bits = next(a.i for a in node.attribute if a.name == "bits")
    codes, scales = arrays[node.input[1]], arrays[node.input[2]]
    if bits == 4:
        codes = np.stack((codes & 15, codes >> 4), -1).reshape(*codes.shape[:2], -1)
    zero = 1 << (bits - 1)
    if len(node.input) > 3 and node.input[3]:
        zeros = arrays[node.input[3]]
        zeros = np.stack((zeros & 15, zeros >> 4), -1).reshape(len(zeros), -1) if bits == 4 else zeros
        zero = zeros[:, : codes.shape[1], None].astype(np.float32)
    rows = ((codes.astype(np.float32) - zero) * scales[..., None]).reshape(len(codes), -1)
    return rows[: MODELS["gqa"].intermediate_size, : MODELS["gqa"].hidden_size]
