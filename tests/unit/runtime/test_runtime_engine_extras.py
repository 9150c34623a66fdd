"""Engines: logits of all tokens, hidden states, learned prompts, and whether one says that it is right."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from peft_adapters import write_soft_prompt
from played_engine import PlayedEngine
from played_tensorrt import PlayedCuda, played_module
from talking_checkpoint import quick_graphs, talking, talking_bundle

import llama_export
import llama_runtime
from llama_export.cli import main
from llama_export.engine.options import EngineOptions
from llama_export.engine_export import export_engine
from llama_export.errors import OptionError as ExportOptionError
from llama_export.recipe import Recipe
from llama_runtime import Generator, SamplingOptions
from llama_runtime.cuda import Cuda
from llama_runtime.engine_file import read_engine_file
from llama_runtime.errors import EngineError, OptionError, PromptError
from llama_runtime.manifest import FileEntry, read_manifest
from llama_runtime.soft_prompt import read_soft_prompt
from llama_runtime.tasks.batch import TextModel
from llama_runtime.tasks.embed import Embedder
from llama_runtime.tensorrt_engine import TensorRTEngine
from llama_runtime.tensorrt_library import Library
from llama_runtime.tensorrt_session import EngineSession, open_engine_session

__all__ = ["quick_graphs", "talking", "talking_bundle"]
SMALL = {"max_seq": 96, "buckets": (16, 32, 96), "prefill_chunk": 8, "max_batch": 4}
PROMPT = "once upon a time there was a small red fox"


def played(bundle, name="fp32"):
    file, manifest = read_engine_file(bundle, name), read_manifest(bundle)
    return EngineSession(
        PlayedEngine(bundle / file.onnx.path), file, manifest, read_soft_prompt(bundle, manifest)
    )


def on_tensorrt(bundle, name="fp32"):
    file, runtime, manifest = read_engine_file(bundle, name), PlayedCuda(), read_manifest(bundle)
    library = Library(played_module(file, runtime), "tensorrt", "11.4")
    engine = TensorRTEngine(library, Cuda(runtime), file, str(bundle / f"trt/{name}.onnx").encode())
    return EngineSession(engine, file, manifest, read_soft_prompt(bundle, manifest))


def with_engine(source, output, **options):
    made = EngineOptions(**SMALL | {"precision": "fp32"} | options)
    return export_engine(source, output, options=made, onnx_only=True).output


@pytest.fixture(scope="module")
def both(talking, tmp_path_factory):
    """A language model that gives its last hidden states, and has an engine that does."""
    folder = tmp_path_factory.mktemp("both")
    llama_export.export(talking, folder / "a", recipe=Recipe(hidden_states="last"))
    return with_engine(folder / "a", folder / "b")


@pytest.mark.parametrize("open_session", [played, on_tensorrt])
def test_all_logits_and_hidden_states_are_those_of_the_bundles_own_graph(both, open_session):
    own, session = llama_runtime.load(both, threads=1).session, open_session(both)
    ids = np.arange(1, 41).reshape(2, 20)
    for every in (False, True):
        found, wanted = (
            s.prefill(ids, s.new_cache(capacity=21, rows=2), all_logits=every, outputs=["last_hidden_state"])
            for s in (session, own)
        )
        for name in ("logits", "last_hidden_state"):
            assert found[name].shape == wanted[name].shape
            np.testing.assert_allclose(found[name], wanted[name], atol=2e-5)
    cache = session.new_cache(capacity=21, rows=2)
    session.prefill(ids, cache)
    step = session.decode(np.array([3, 4]), cache, outputs=["last_hidden_state"])
    assert step["last_hidden_state"].shape == (2, 1, 42)


def test_a_language_models_engine_embeds(both):
    texts = [PROMPT, "the sea", "seven small streams run down"]
    own = llama_runtime.load_embedder(both, threads=1)
    wanted = own.embed(texts, normalize=True)
    for session in (played(both), on_tensorrt(both)):
        found = Embedder(TextModel(session, own.model.tokenizer)).embed(texts, normalize=True)
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_outputs_that_an_engine_lacks_are_refused_by_name(talking, tmp_path):
    llama_export.export(talking, tmp_path / "a", recipe=Recipe(hidden_states="all", verify=False))
    session = played(with_engine(tmp_path / "a", tmp_path / "b"))
    cache = session.new_cache(capacity=4)
    with pytest.raises(OptionError, match=r"outputs names 'hidden_states\.0', the bundle has none"):
        session.prefill(np.array([[1]]), cache, outputs=["hidden_states.0"])
    assert session.prefill(np.array([[1]]), cache).shape == (1, session.manifest.limits.vocab_size)


def test_an_engine_reads_no_tokens_ahead(both):
    generator = Generator(played(both), None)
    with pytest.raises(OptionError, match="an engine gives the logits of a run's last token alone"):
        generator.generate([1, 2, 3], SamplingOptions(max_new_tokens=4, prompt_lookup_num_tokens=3))


@pytest.fixture(scope="module")
def learned(talking, tmp_path_factory):
    """A bundle with a learned prompt of five positions, and its engines."""
    folder = tmp_path_factory.mktemp("learned")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = write_soft_prompt(talking, folder / "adapter", num_virtual_tokens=5)
    options = EngineOptions(**SMALL, precision="fp32")
    recipe = Recipe(adapters=(adapter,), verify=False)
    export_engine(talking, folder / "b", options=options, recipe=recipe, onnx_only=True)
    return with_engine(folder / "b", folder / "c", precision="fp16")


@pytest.mark.parametrize("open_session", [played, on_tensorrt])
def test_every_text_stands_behind_the_learned_prompt(learned, open_session):
    own, session = llama_runtime.load(learned, threads=1), open_session(learned)
    generator = Generator(session, own.tokenizer)
    for options in (
        SamplingOptions(max_new_tokens=40),
        SamplingOptions(max_new_tokens=12, num_beams=3, num_return_sequences=2),
    ):
        wanted = [done.tokens for done in own.generate_sequences(PROMPT, options)]
        assert [done.tokens for done in generator.generate_sequences(PROMPT, options)] == wanted
    prompts, short = [PROMPT, "seven", "the sea", "a", "still green"], SamplingOptions(max_new_tokens=9)
    wanted = [own.generate(prompt, short).tokens for prompt in prompts]
    assert [done.tokens for done in generator.generate_batch(prompts, short, rows=3)] == wanted
    assert session.manifest.limits.max_position_embeddings == 96 - 5
    with pytest.raises(PromptError, match="a cache of 92 positions, the engine has 91"):
        session.new_cache(capacity=92)


def test_a_chat_behind_a_learned_prompt_can_be_saved(learned, tmp_path):
    own = llama_runtime.load(learned, threads=1)
    answers = []
    for model in (own, Generator(on_tensorrt(learned), own.tokenizer)):
        chat, options = llama_runtime.Conversation(model), SamplingOptions(max_new_tokens=6)
        said = [chat.send("once upon", options).tokens]
        chat.save(tmp_path / "chat.safetensors")
        again = llama_runtime.Conversation(model)
        again.restore(tmp_path / "chat.safetensors")
        answers.append([*said, again.send("salt", options).tokens])
    assert answers[0] == answers[1]


def test_a_learned_prompt_that_leaves_no_room(learned, tmp_path):
    options = EngineOptions(precision="fp32", max_seq=5, buckets=(5,))
    with pytest.raises(ExportOptionError, match="max_seq is 5, of which the learned prompt takes 5"):
        export_engine(learned, tmp_path / "b", options=options, onnx_only=True)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """``--device tensorrt`` finds a GPU: one that is played."""

    def opened(folder, manifest, name=None):
        file = read_engine_file(folder, name)
        return played(folder, next(n for n in ("fp32", "fp16", *FEW_BITS) if f"{n}.onnx" in file.onnx.path))

    monkeypatch.setattr("llama_runtime.tensorrt_session.open_engine_session", opened)


FEW_BITS = ("int8", "fp8", "int4")


def selftest(bundle, *options):
    return CliRunner().invoke(main, ["selftest", str(bundle), "--device", "tensorrt", *options])


def test_selftest_of_engines(talking_bundle, both, tmp_path, on_a_gpu):
    folder = with_engine(talking_bundle, tmp_path / "b")
    with_engine(folder, folder, precision="fp16")
    for name in FEW_BITS:
        with_engine(
            folder, folder, precision=name, compute="fp16", **({"block_size": 32} if name == "int4" else {})
        )
    largest = {}
    for name in ("fp32", "fp16", *FEW_BITS):
        result = selftest(folder, "--engine", name, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["ok"], (name, found)
        largest[name] = found["largest_logit_difference"]
    assert largest["fp32"] < 1e-4 < largest["fp16"] < largest["int8"] < largest["int4"]
    # The known hidden states of a model that gives them are replayed too.
    result = selftest(both, "--engine", "fp32")
    assert result.exit_code == 0, result.output
    assert "logits within" in result.stdout


def test_selftest_finds_an_engine_that_computes_something_else(talking_bundle, tmp_path, on_a_gpu):
    folder = with_engine(talking_bundle, tmp_path / "b", precision="fp16")
    data = folder / "trt/fp16.onnx_data"
    content = np.frombuffer(data.read_bytes(), np.float16).copy()
    content[len(content) // 2 :] *= np.float16(-1)
    data.write_bytes(content.tobytes())
    result = selftest(folder)
    assert result.exit_code == 1
    assert "the known answers differ" in result.stderr


def test_selftest_of_an_engine_that_is_shorter_than_the_known_answers(talking_bundle, tmp_path, on_a_gpu):
    folder = with_engine(talking_bundle, tmp_path / "b", max_seq=24, buckets=(24,))
    found = json.loads(selftest(folder, "--json").stdout)
    whole = llama_runtime.selftest(folder, threads=1)
    assert found["ok"]
    assert 0 < found["tokens"] < whole.tokens
    with_engine(folder, tmp_path / "c", max_seq=2, buckets=(2,), precision="fp16")
    result = selftest(tmp_path / "c", "--engine", "fp16")
    assert result.exit_code == 2
    assert "every known answer is longer than the engine" in result.stderr


def test_a_plan_without_weights_gets_those_of_its_graph(talking_bundle, tmp_path, monkeypatch):
    """What ``--device tensorrt`` does, to TensorRT's own calls."""
    folder = with_engine(talking_bundle, tmp_path / "b")
    own = llama_runtime.load(folder, threads=1)
    graph = folder / "trt/fp32.onnx"
    file = dataclasses.replace(
        read_engine_file(folder), stripped=True, product="tensorrt", product_version="11.4",
        plan=FileEntry("trt/fp32.plan", len(str(graph)), hashlib.sha256(str(graph).encode()).hexdigest()),
        compute_capabilities=("9.0",),
    )  # fmt: skip
    (folder / "trt/fp32.json").write_text(file.to_json())
    (folder / "trt/fp32.plan").write_text(str(graph))
    runtime = PlayedCuda()
    module = played_module(file, runtime)
    opened = "llama_runtime.tensorrt_session"
    monkeypatch.setattr(f"{opened}.find_library", lambda product: Library(module, "tensorrt", "11.4"))
    monkeypatch.setattr(f"{opened}.open_cuda", lambda: (Cuda(runtime), "9.0"))
    options = SamplingOptions(max_new_tokens=20)
    session = open_engine_session(folder, own.manifest)
    found = Generator(session, own.tokenizer).generate(PROMPT, options)
    assert found.tokens == own.generate(PROMPT, options).tokens
    assert module.plans[0].weights == str(graph)
    monkeypatch.setattr(module, "Refitter", lambda engine, logger: SimpleNamespace(
        engine=engine, refit_cuda_engine=lambda: False))  # fmt: skip
    with pytest.raises(EngineError, match=r"fp32\.onnx: its weights do not fit the plan"):
        open_engine_session(folder, own.manifest)
    graph.write_bytes(graph.read_bytes() + b"more")
    with pytest.raises(EngineError, match="its sidecar lists"):
        open_engine_session(folder, own.manifest)
