"""The session over engines: the same generator gives the same tokens, whether the engine is played or not.

``played``: ONNX Runtime runs the engine's graph; ``on tensorrt``: so it does, behind the calls to TensorRT
and CUDA that ``tensorrt_engine`` makes, device memory and CUDA graphs included.
"""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest
from played_engine import PlayedEngine
from played_tensorrt import PlayedCuda, played_module
from talking_checkpoint import quick_graphs, talking, talking_bundle
from tiny_heads import write_head_checkpoint

import llama_runtime
from llama_export.engine.options import EngineOptions
from llama_export.engine_export import export_engine
from llama_export.recipe import Recipe
from llama_runtime import Generator, SamplingOptions
from llama_runtime.cuda import Cuda
from llama_runtime.engine_file import read_engine_file
from llama_runtime.errors import EngineError, OptionError, PromptError
from llama_runtime.manifest import read_manifest
from llama_runtime.tasks.batch import run_padded
from llama_runtime.tensorrt_engine import TensorRTEngine
from llama_runtime.tensorrt_library import Library
from llama_runtime.tensorrt_session import EngineSession

__all__ = ["quick_graphs", "talking", "talking_bundle"]
PROMPT = "once upon a time there was a small red fox"
OPTIONS = EngineOptions(precision="fp32", max_seq=96, buckets=(16, 32, 96), prefill_chunk=8, max_batch=4)


@pytest.fixture(scope="module")
def bundle(talking_bundle, tmp_path_factory):
    output = tmp_path_factory.mktemp("engines") / "fox"
    export_engine(talking_bundle, output, options=OPTIONS, onnx_only=True)
    export_engine(output, options=dataclasses.replace(OPTIONS, precision="fp16"), onnx_only=True)
    return output


def on_tensorrt(bundle, name="fp32", limit=1 << 30):
    file, runtime = read_engine_file(bundle, name), PlayedCuda(limit)
    library = Library(played_module(file, runtime), "tensorrt", "11.4")
    plan = str(bundle / "trt" / f"{name}.onnx").encode()
    return (
        EngineSession(TensorRTEngine(library, Cuda(runtime), file, plan), file, read_manifest(bundle)),
        library,
        runtime,
    )


def played(bundle, name="fp32"):
    engine = PlayedEngine(bundle / "trt" / f"{name}.onnx")
    return EngineSession(engine, read_engine_file(bundle, name), read_manifest(bundle))


@pytest.fixture(scope="module")
def reference(bundle):
    return llama_runtime.load(bundle, threads=1)


@pytest.fixture(scope="module", params=["played", "on tensorrt"])
def generator(request, bundle, reference):
    session = played(bundle) if request.param == "played" else on_tensorrt(bundle)[0]
    return Generator(session, reference.tokenizer)


@pytest.mark.parametrize("options", [
    SamplingOptions(max_new_tokens=60),
    SamplingOptions(max_new_tokens=40, temperature=0.9, top_p=0.9, seed=5),
    SamplingOptions(max_new_tokens=20, temperature=0.7, seed=1, num_return_sequences=3),
    SamplingOptions(max_new_tokens=20, num_beams=4, num_return_sequences=2),
], ids=["greedy", "sampled", "several", "beams"])  # fmt: skip
def test_the_same_tokens_as_the_bundles_own_graph(generator, reference, options):
    wanted = reference.generate_sequences(PROMPT, options)
    assert [found.tokens for found in generator.generate_sequences(PROMPT, options)] == [
        w.tokens for w in wanted
    ]


def test_a_batch_that_rows_join_and_leave(generator, reference):
    prompts = [
        PROMPT,
        "seven",
        "the sea",
        "wind, salt and time",
        "still green",
        "a",
        "important things to know",
    ]
    options = [SamplingOptions(max_new_tokens=n) for n in (30, 5, 12, 21, 3, 40, 9)]
    wanted = [reference.generate(p, o).tokens for p, o in zip(prompts, options, strict=True)]
    found = generator.generate_batch(prompts, options, rows=4)
    assert [done.tokens for done in found] == wanted


def test_a_chat_reads_its_own_turns_alone_and_can_be_saved(generator, reference, tmp_path):
    answers = []
    for model in (reference, generator):
        chat = llama_runtime.Conversation(model)
        options = SamplingOptions(max_new_tokens=8)
        said = [chat.send("once upon", options).tokens, chat.send("the sea", options).tokens]
        chat.save(tmp_path / "chat.safetensors")
        again = llama_runtime.Conversation(model)
        again.restore(tmp_path / "chat.safetensors")
        answers.append([*said, again.send("salt", options).tokens])
    assert answers[0] == answers[1]


def test_every_step_takes_the_smallest_bucket_and_its_own_profile(bundle):
    session = played(bundle)
    cache = session.new_cache(capacity=96)
    session.prefill(np.arange(1, 20)[None], cache)
    # Chunks of 8 behind 0, 8 and 16 tokens, in buckets 16, 16 and 32; profile 3 is that of chunks.
    assert session.engine.runs == [(3, 1, 8, 16), (3, 1, 8, 16), (3, 1, 3, 32)]
    session.engine.runs.clear()
    for _ in range(14):
        session.decode(np.array([5]), cache)
    assert session.engine.runs == [(1, 1, 1, 32)] * 13 + [(2, 1, 1, 96)]
    cache.truncate(3)
    session.engine.runs.clear()
    session.decode(np.array([5]), cache)
    assert session.engine.runs == [(0, 1, 1, 16)]


def test_what_stands_in_unused_slots_changes_nothing(bundle, reference):
    session = played(bundle)
    session.engine.fill = 500.0
    got = Generator(session, reference.tokenizer).generate(PROMPT, SamplingOptions(max_new_tokens=50))
    assert got.tokens == reference.generate(PROMPT, SamplingOptions(max_new_tokens=50)).tokens


def test_float16_is_close(bundle, reference):
    ids = np.arange(1, 40)[None]
    for session in (played(bundle, "fp16"), on_tensorrt(bundle, "fp16")[0]):
        got = session.prefill(ids, session.new_cache(capacity=40))
        want = reference.session.prefill(ids, reference.session.new_cache(capacity=40))
        assert np.abs(got - want).max() <= 1e-2 * np.abs(want).max()
        assert session.manifest.cache.dtype == "float16"


def test_a_decode_is_recorded_once_for_each_bucket_and_number_of_rows(bundle):
    session, library, cuda = on_tensorrt(bundle)
    plan = library.module.plans[0]
    cache = session.new_cache(capacity=96, rows=2)
    session.prefill(np.array([[1, 2, 3], [4, 5, 6]]), cache)
    before = plan.runs
    for _ in range(20):
        session.decode(np.array([7, 8]), cache)
    # Positions 3 to 22: buckets 16 and 32, each run once and replayed from then on.
    assert (plan.runs - before, cuda.launched) == (2, 18)
    held = len(cuda.buffers)
    del cache
    gc.collect()
    again = session.new_cache(capacity=96, rows=2)
    session.prefill(np.array([[1, 2, 3], [4, 5, 6]]), again)
    before, launched = plan.runs, cuda.launched
    session.decode(np.array([7, 8]), again)
    # The memory that was given back serves again, and so do its recordings.
    assert (plan.runs - before, cuda.launched - launched, len(cuda.buffers)) == (0, 1, held)


def test_without_recording_the_tokens_are_the_same(bundle, reference):
    wanted = reference.generate(PROMPT, SamplingOptions(max_new_tokens=20)).tokens
    for way in ("switched off", "not capturable"):
        session, library, cuda = on_tensorrt(bundle)
        session.engine.use_graphs = way != "switched off"
        library.module.plans[0].capturable = way != "not capturable"
        got = Generator(session, reference.tokenizer).generate(PROMPT, SamplingOptions(max_new_tokens=20))
        assert got.tokens == wanted
        assert cuda.launched == 0


def test_memory_on_the_gpu_is_given_back(bundle):
    session, library, cuda = on_tensorrt(bundle)
    session.prefill(np.array([[1, 2, 3]]), session.new_cache(capacity=8))
    session.decode(np.array([1]), cache := session.new_cache(capacity=8, rows=1))
    del session, cache
    library.module.plans.clear()
    gc.collect()
    assert cuda.buffers == {}
    assert cuda.destroyed == 1


def test_bounds_are_checked_before_anything_is_written(bundle):
    session = played(bundle)
    with pytest.raises(PromptError, match="a cache of 97 positions, the engine has 96"):
        session.new_cache(capacity=97)
    with pytest.raises(OptionError, match="5 rows together, the engine takes 4"):
        session.new_cache(capacity=8, rows=5)
    cache = session.new_cache(capacity=10)
    session.prefill(np.arange(1, 9)[None], cache)
    written = [tensor.copy() for tensor in cache.lease.memory.tensors]
    with pytest.raises(PromptError, match="3 more tokens after 8"):
        session.prefill(np.arange(1, 4)[None], cache)
    assert cache.length == 8
    for tensor, before in zip(cache.lease.memory.tensors, written, strict=True):
        np.testing.assert_array_equal(tensor, before)
    # Even with room that the cache claims to have, nothing goes behind the engine's own slots.
    cache.capacity, cache.length = 200, 96
    with pytest.raises(PromptError, match="1 tokens from slot 96 on, the engine has 96"):
        session.decode(np.array([1]), cache)


def test_a_full_gpu_is_one_sentence(bundle):
    session, _, _ = on_tensorrt(bundle, limit=30_000)
    with pytest.raises(EngineError, match="no room for 4 rows of cache") as refused:
        session.new_cache(capacity=8, rows=4)
    assert refused.value.exit_code == 2


def broken(bundle, change):
    file, runtime = read_engine_file(bundle, "fp32"), PlayedCuda()
    module = played_module(file, runtime)
    load = module.Runtime.deserialize_cuda_engine

    def deserialize(self, plan):
        found = load(self, plan)
        change(found)
        return found

    module.Runtime.deserialize_cuda_engine = deserialize
    plan = str(bundle / "trt/fp32.onnx").encode()
    return TensorRTEngine(Library(module, "tensorrt", "11.4"), Cuda(runtime), file, plan)


@pytest.mark.parametrize(("change", "words"), [
    (lambda plan: plan.aliases.update({"present.1.key": None}), "does not write present.1.key in place"),
    (lambda plan: plan.names.remove("write_indices") or setattr(plan, "num_io_tensors", len(plan.names)),
     "not the one that its sidecar describes: write_indices"),
    (lambda plan: setattr(plan, "num_optimization_profiles", 2), "has 2 profiles, its sidecar 4"),
])  # fmt: skip
def test_a_plan_that_is_not_what_its_sidecar_says(bundle, change, words):
    with pytest.raises(EngineError, match=words):
        broken(bundle, change)


def test_a_plan_that_tensorrt_cannot_load(bundle):
    file, runtime = read_engine_file(bundle, "fp32"), PlayedCuda()
    with pytest.raises(EngineError, match=r"tensorrt 11\.4 cannot load the plan"):
        TensorRTEngine(Library(played_module(file, runtime), "tensorrt", "11.4"), Cuda(runtime), file, b"")


@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
def test_task_heads_read_whole_texts(tmp_path, task):
    write_head_checkpoint(tmp_path / "c", task)
    options = EngineOptions(precision="fp32", max_seq=32, max_batch=2)
    export_engine(
        tmp_path / "c", tmp_path / "b", options=options, recipe=Recipe(verify=False), onnx_only=True
    )
    rows = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
    own = llama_runtime.open_session(tmp_path / "b", read_manifest(tmp_path / "b"), threads=1)
    names = [spec.name for spec in own.manifest.outputs]
    wanted = run_padded(own, rows, names)
    for session in (played(tmp_path / "b"), on_tensorrt(tmp_path / "b")[0]):
        found = run_padded(session, rows, names)
        for got, want in zip(found, wanted, strict=True):
            for name in names:
                np.testing.assert_allclose(got[name], want[name], atol=1e-5)
        with pytest.raises(PromptError, match="a text of 33 tokens, the engine takes 32"):
            session.run(
                {"input_ids": np.ones((1, 33), np.int64), "attention_mask": np.ones((1, 33), np.int64)}
            )
        with pytest.raises(EngineError, match="has no cache"):
            session.new_cache(capacity=4)
