"""ONNX Runtime on a GPU, played on the CPU: a graph that stays in float16, a cache that stays there."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from played_tensorrt import PlayedCuda
from refusals import refused
from talking_checkpoint import talking
from tiny_checkpoints import VARIANTS, write_checkpoint
from tiny_heads import write_head_checkpoint

import llama_export
import llama_runtime
from llama_export.cli import main
from llama_export.errors import OptionError
from llama_export.recipe import Recipe
from llama_runtime import Generator, SamplingOptions
from llama_runtime.cuda import Cuda
from llama_runtime.cuda_session import CudaSession
from llama_runtime.errors import EngineError, PromptError
from llama_runtime.manifest import read_manifest

__all__ = ["talking"]
PROMPT = "once upon a time there was a small red fox"


@pytest.fixture(scope="module")
def half(talking, tmp_path_factory):
    """A verified bundle that computes in float16."""
    return llama_export.export(
        talking, tmp_path_factory.mktemp("half") / "fox", recipe=Recipe(compute="float16")
    )


@pytest.fixture(scope="module")
def own(half):
    return llama_runtime.load(half.output, threads=1)


def on_device(own, limit=1 << 30):
    runtime = PlayedCuda(limit)
    return CudaSession(own.session._inference, own.manifest, Cuda(runtime), device="cpu"), runtime


def test_the_graph_is_float16_but_for_its_logits(half):
    model = onnx.load(half.output / half.manifest.model.path, load_external_data=False)
    onnx.checker.check_model(half.output / half.manifest.model.path)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False)
    half_type, wide = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert {kind for name, kind in kinds.items() if name.startswith(("past", "present"))} == {half_type}
    assert kinds["logits"] == wide
    assert {t.data_type for t in model.graph.initializer} <= {
        half_type,
        onnx.TensorProto.INT64,
        onnx.TensorProto.INT32,
    }
    known = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert [name for name, kind in known.items() if kind == wide] == []
    # A Cast of a weight would be one of every run; of GroupQueryAttention's inputs, GPUs take no bias.
    casts = [n for n in model.graph.node if n.op_type == "Cast" and n.output[0] == "logits"]
    assert len(casts) == 1
    attentions = [n for n in model.graph.node if n.op_type == "GroupQueryAttention"]
    assert attentions
    assert not any(node.input[9:] and any(node.input[9:]) for node in attentions)
    assert half.manifest.cache.dtype == "float16"
    assert half.manifest.precision == "float16"
    assert not (half.output / "genai_config.json").exists()


def test_it_is_verified_within_what_float16_rounds(half):
    rungs = {rung.name: rung for rung in half.report.rungs}
    assert half.report.passed
    assert 1e-4 < rungs["prefill"].measured <= rungs["prefill"].tolerance == 2e-2
    assert rungs["left-padded batch"].measured is None
    assert "no padding in front" in rungs["left-padded batch"].detail
    assert rungs["far positions"].measured is None
    assert rungs["whole context"].passed
    assert rungs["right-padded batch"].passed
    assert llama_runtime.selftest(half.output, threads=1).ok


def test_a_float16_checkpoint_is_linked(tmp_path, talking):
    from talking_checkpoint import write_talking_checkpoint

    write_talking_checkpoint(tmp_path / "c", "float16")
    made = llama_export.export(tmp_path / "c", tmp_path / "b", recipe=Recipe(compute="float16", verify=False))
    assert made.manifest.weights == "link"


@pytest.mark.parametrize("options", [
    SamplingOptions(max_new_tokens=40),
    SamplingOptions(max_new_tokens=20, temperature=0.7, seed=1, num_return_sequences=3),
    SamplingOptions(max_new_tokens=20, num_beams=4, num_return_sequences=2),
], ids=["greedy", "several", "beams"])  # fmt: skip
def test_a_cache_on_the_device_gives_the_same_tokens(own, options):
    session, _ = on_device(own)
    wanted = [done.tokens for done in own.generate_sequences(PROMPT, options)]
    found = Generator(session, own.tokenizer).generate_sequences(PROMPT, options)
    assert [done.tokens for done in found] == wanted


def test_batches_and_chats_on_the_device(own, tmp_path):
    session, runtime = on_device(own)
    generator = Generator(session, own.tokenizer)
    prompts, options = [PROMPT, "seven", "the sea", "a", "still green"], SamplingOptions(max_new_tokens=9)
    wanted = [own.generate(prompt, options).tokens for prompt in prompts]
    assert [done.tokens for done in generator.generate_batch(prompts, options, rows=3)] == wanted
    answers = []
    for model in (own, generator):
        chat = llama_runtime.Conversation(model)
        said = [chat.send("once upon", options).tokens, chat.send("the sea", options).tokens]
        chat.save(tmp_path / "chat.safetensors")
        again = llama_runtime.Conversation(model)
        again.restore(tmp_path / "chat.safetensors")
        answers.append([*said, again.send("salt", options).tokens])
    assert answers[0] == answers[1]
    del generator, session, chat, again, model
    gc.collect()
    assert runtime.buffers == {}


def test_bounds_and_a_full_gpu_are_one_sentence(own):
    session, _ = on_device(own, limit=20_000)
    with pytest.raises(PromptError, match="a cache of 161 positions, the model has 160"):
        session.new_cache(capacity=161)
    with pytest.raises(EngineError, match="no room for 4 rows of cache"):
        session.new_cache(capacity=160, rows=4)


def test_a_cache_that_grows_keeps_what_it_holds(own):
    session, _ = on_device(own)
    cache, ids = session.new_cache(capacity=6), np.arange(1, 6)[None]
    session.prefill(ids, cache)
    before = cache.read_row(5)
    cache.enlarge(20)
    for kept, was in zip(cache.read_row(5), before, strict=True):
        np.testing.assert_array_equal(kept, was)
    found = session.decode(np.array([7]), cache)
    whole = own.session.new_cache(capacity=20)
    own.session.prefill(ids, whole)
    np.testing.assert_allclose(found, own.session.decode(np.array([7]), whole), atol=1e-3)


REFUSED = {
    "eager": ({"attention": "eager"}, "attention is eager"),
    "int4": ({"precision": "int4"}, "compute is float16, of which the weights are too, precision is int4"),
    "bfloat16": ({"precision": "bfloat16"}, "precision is bfloat16"),
    "hidden states": ({"hidden_states": "last"}, "it has other inputs or outputs than the default"),
    "another": ({"compute": "bfloat16"}, "compute is 'bfloat16', must be one of float32, float16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_float16_is_not_for(talking, tmp_path, case):
    choices, words = REFUSED[case]
    with pytest.raises(OptionError, match=words):
        llama_export.export(talking, tmp_path / "b", recipe=Recipe(**{"compute": "float16"} | choices))
    assert list(tmp_path.iterdir()) == []


def test_models_that_float16_is_not_for(tmp_path):
    write_checkpoint(tmp_path / "c", VARIANTS["dynamic"], "float16", eos_token_id=2)
    write_head_checkpoint(tmp_path / "h", "text-classification")
    for name, words in (("c", "rope is dynamic"), ("h", "the task is text-classification")):
        with pytest.raises(OptionError, match=words):
            llama_export.export(tmp_path / name, tmp_path / "b", recipe=Recipe(compute="float16"))


def test_a_bundle_whose_attention_would_run_on_the_cpu_is_refused(talking, tmp_path, monkeypatch):
    llama_export.export(talking, tmp_path / "b", recipe=Recipe(verify=False))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    result = CliRunner().invoke(main, ["run", str(tmp_path / "b"), "hello", "--device", "cuda"])
    refused(result, "its fused attention computes in float32, on GPUs ONNX Runtime has it in float16")
    assert "--compute float16" in result.stderr


def test_the_manifest_says_what_the_cache_holds(half):
    specs = {spec.name: spec.dtype for spec in read_manifest(half.output).inputs}
    assert specs["past_key_values.0.key"] == "float16"
