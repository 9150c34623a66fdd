"""Engines from C++, with TensorRT and CUDA played on the CPU behind the calls that the library makes."""

from __future__ import annotations

import json
import os
import subprocess
import threading

import c_abi
import pytest
from c_abi import AbiError
from cpp_bundles import REPO, build, copy_bundle
from engine_plans import (
    PLAYED,
    PROMPT,
    bundle,
    counts,
    exported,
    folder,
    give_plan,
    list_again,
    open_engine,
    played,
    product,
    reference,
)
from played_engine import PlayedEngine
from tiny_heads import write_head_checkpoint

import llama_runtime
from llama_export.engine.options import EngineOptions
from llama_export.engine_export import export_engine
from llama_export.recipe import Recipe
from llama_runtime import SamplingOptions
from llama_runtime.engine_file import read_engine_file
from llama_runtime.manifest import read_manifest
from llama_runtime.tensorrt_session import EngineSession

__all__ = ["bundle", "counts", "exported", "folder", "open_engine", "played", "product", "reference"]


@pytest.mark.parametrize("options", [
    {"max_new_tokens": 60},
    {"max_new_tokens": 40, "temperature": 0.9, "top_p": 0.9, "seed": 5},
    {"max_new_tokens": 70, "repetition_penalty": 1.2, "ignore_eos": True},
], ids=["greedy", "sampled", "to the last slot"])  # fmt: skip
def test_the_same_tokens_as_the_bundles_own_graph(open_engine, bundle, reference, options):
    wanted = reference.generate(PROMPT, SamplingOptions(**options))
    model = open_engine(bundle)
    assert model.max_positions == 96
    assert model.generate(PROMPT, **options).tokens == wanted.tokens
    assert model.generate(PROMPT, **options).text == wanted.text


def test_float16_says_what_pythons_engine_says(open_engine, bundle, reference):
    engine = PlayedEngine(bundle / "trt/fp16.onnx")
    session = EngineSession(engine, read_engine_file(bundle, "fp16"), read_manifest(bundle))
    python = llama_runtime.Generator(session, reference.tokenizer)
    wanted = python.generate(PROMPT, SamplingOptions(max_new_tokens=40))
    assert open_engine(bundle, "fp16").generate(PROMPT, max_new_tokens=40).tokens == wanted.tokens


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_known_answers(open_engine, bundle, reference, name):
    """Those that fit the engine, as exactly as it computes; the prompt is longer than none of them here."""
    report, differences = open_engine(bundle, name).selftest()
    answers = reference.manifest.known_answers
    fitting = [min(len(a.tokens), max(96 - len(a.prompt_tokens), 0)) for a in answers]
    assert (report.tokens, differences) == (sum(fitting), [])
    assert 0 < sum(fitting) < sum(len(a.tokens) for a in answers) + 1
    assert report.largest_difference < (1e-4 if name == "fp32" else 1e-1)


def test_runs_are_recorded_once_for_each_bucket(open_engine, bundle, counts):
    model = open_engine(bundle)
    prompt = [1, *range(5, 24)]  # 20 tokens: chunks of 8, 8 and 4
    model.generate(prompt, max_new_tokens=21, ignore_eos=True)
    # 20 decodes at positions 20 to 39: buckets 32 and 96, each run once and replayed from then on.
    assert (counts("run"), counts("launch")) == (3 + 2, 18)
    counts("alloc")
    model.generate(prompt, max_new_tokens=21, ignore_eos=True)
    # The memory that was given back serves again, and so do its recordings.
    assert (counts("run"), counts("launch"), counts("alloc")) == (3, 20, 0)


def test_memory_is_given_back(open_engine, bundle, counts, folder, onnxruntime_library):
    before = counts("live")
    library = c_abi.load(folder / "libllama_runtime.so")
    model = c_abi.Model(library, onnxruntime_library, bundle, device="tensorrt", engine="fp32")
    model.generate(PROMPT, max_new_tokens=30)
    assert counts("live") > before
    model.close()
    assert counts("live") == before


def test_generators_share_an_engine(open_engine, bundle, reference):
    model, seeds = open_engine(bundle), range(3)
    generators = [model.new_generator() for _ in seeds]
    got: dict[int, tuple] = {}

    def work(seed):
        options = {"temperature": 1.0, "seed": seed, "max_new_tokens": 50}
        for _ in range(3):
            got[seed] = model.generate(PROMPT, None, generators[seed], **options).tokens

    threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for generator in generators:
        model.library.lr_generator_free(generator)
    options = [SamplingOptions(temperature=1.0, seed=seed, max_new_tokens=50) for seed in seeds]
    assert got == {seed: reference.generate(PROMPT, options[seed]).tokens for seed in seeds}


def test_bounds_are_checked_before_anything_runs(open_engine, bundle, counts):
    model = open_engine(bundle)
    with pytest.raises(AbiError, match="97, the model has 96 positions"):
        model.generate([1] * 90, max_new_tokens=7)
    assert counts("run") == 0


def test_a_head(open_engine, product, tmp_path):
    write_head_checkpoint(tmp_path / "c", "text-classification")
    options = EngineOptions(precision="fp32", max_seq=32, max_batch=2)
    bundle = export_engine(
        tmp_path / "c", tmp_path / "b", options=options, recipe=Recipe(verify=False), onnx_only=True
    ).output
    give_plan(bundle, "fp32", product)
    model, classifier = open_engine(bundle), llama_runtime.load_classifier(bundle, threads=1)
    for text in ("the sea", "a small red fox by the still green sea"):
        wanted = classifier.classify([text])[0]
        _, labels = model.classify(text)
        assert [name for name, _, _ in labels] == [name for name, _ in wanted.scores]
        scores = [score for _, score in wanted.scores]
        assert [score for _, score, _ in labels] == pytest.approx(scores, abs=1e-5)
    with pytest.raises(AbiError, match="the model has 32 positions"):
        model.classify("the sea " * 30)


BAD = {
    "another product's": ({"product": "other"}, {}, "session", "was built with"),
    "another version's": ({"product_version": "9.9.9"}, {}, "session", "was built with .* 9.9.9"),
    "another GPU's": ({}, {"PLAYED_GPU": "12.0"}, "session", "8.6, 8.9, this GPU has 12.0"),
    "no GPU": ({}, {"PLAYED_GPU": "none"}, "session", "no NVIDIA GPU with a driver is here"),
    "a full GPU": ({}, {"PLAYED_MIB": "0"}, "memory", "not enough memory"),
    "a plan that is none": ({"content": "broken"}, {}, "session", "cannot load the plan on this GPU"),
    "a plan that loses its cache": ({}, {"PLAYED_ALIAS": "wrong"}, "session", "its cache would be lost"),
    "no plan": ({"plan": None, "product": None, "product_version": None}, {}, "manifest", "no engine built"),
    "a plan without weights": ({"stripped": True}, {}, "manifest", "plan has no weights"),
    "a newer sidecar": ({"version": 2}, {}, "manifest", "version 2 is newer than this runtime"),
    "somebody else's": ({"format": "x"}, {}, "manifest", "not an engine of ours"),
    "a path out of the folder": (
        {"plan": {"path": "../x", "size_bytes": 1, "sha256": ""}}, {}, "manifest", "plan.path is "
    ),
    "buckets that fall": ({"buckets": [32, 16, 96]}, {}, "manifest", "buckets do not rise to max_seq"),
    "buckets that end early": ({"buckets": [16, 32, 64]}, {}, "manifest", "buckets do not rise to max_seq"),
    "a profile too few": ({"profiles": []}, {}, "manifest", "profiles are not one more than buckets"),
    "an alias of nothing": ({"aliases": {"a": "b"}}, {}, "manifest", "aliases name a"),
    "no aliases": ({"aliases": {}}, {}, "manifest", "aliases and buckets"),
    "another task's": ({"task": "text-classification"}, {}, "manifest", "the engine's task is"),
    "other inputs": ({"inputs": "fewer"}, {}, "session", "its inputs and outputs differ"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_run_here_is_refused(open_engine, bundle, product, monkeypatch, tmp_path, name):
    changes, environment, status, told = BAD[name]
    folder = copy_bundle(bundle, tmp_path / "fox")
    (folder / "trt/fp16.json").unlink()
    list_again(folder, "trt/fp16.json")
    changes = dict(changes)
    if changes.get("product") == "other":
        changes["product"] = next(other for other in PLAYED if other != product)
    if changes.get("inputs") == "fewer":
        changes["inputs"] = json.loads((folder / "trt/fp32.json").read_text())["inputs"][1:]
    give_plan(folder, "fp32", product, changes)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(AbiError, match=told) as caught:
        open_engine(folder, None)
    assert caught.value.status == status
    if status == "session" and name not in ("no GPU", "a plan that loses its cache", "other inputs"):
        assert caught.value.hint.startswith(f"llama-export trt {folder} --precision fp32")


def test_a_changed_plan_is_not_run(open_engine, bundle, tmp_path):
    folder = copy_bundle(bundle, tmp_path / "fox")
    plan = folder / "trt/fp32.plan"
    content = plan.read_bytes()
    plan.write_bytes(b"X" + content[1:])
    with pytest.raises(AbiError, match=r"SHA-256 is [0-9a-f]{64}, its sidecar lists"):
        open_engine(folder)
    plan.write_bytes(content[:-1])
    with pytest.raises(AbiError, match="missing, or not of the"):
        open_engine(folder)


def test_which_engine(open_engine, bundle, tmp_path, talking_bundle):
    with pytest.raises(AbiError, match="has engines fp16, fp32"):
        open_engine(bundle, None)
    with pytest.raises(AbiError, match="has no engine bf16, but fp16, fp32"):
        open_engine(bundle, "bf16")
    with pytest.raises(AbiError, match="has no engine") as caught:
        open_engine(talking_bundle)
    assert "llama-export trt" in caught.value.hint


def test_libraries_that_are_not_there(open_engine, bundle, monkeypatch, onnxruntime_library):
    for name in ("LLAMA_RUNTIME_TENSORRT", "LLAMA_RUNTIME_CUDART"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "/nowhere/lib.so")
            with pytest.raises(AbiError, match=r"/nowhere/lib\.so: cannot be loaded") as caught:
                open_engine(bundle)
            assert (caught.value.status, name in caught.value.hint) == ("library", True)
            patch.setenv(name, str(onnxruntime_library))
            with pytest.raises(AbiError, match="the library has no "):
                open_engine(bundle)


def test_programs(folder, played, bundle, reference):
    def run(*command):
        words = [str(word) for word in (folder / command[0], *command[1:], "--device", "tensorrt")]
        return subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ)

    wanted = reference.generate(PROMPT, SamplingOptions(max_new_tokens=12)).text
    done = run("llama-run", bundle, PROMPT, "-n", 12, "--engine", "fp32")
    assert (done.returncode, done.stdout) == (0, wanted + "\n"), done.stderr
    done = run("llama-run", bundle, PROMPT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has engines fp16, fp32" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_under_the_sanitizers(ort_home, onnxruntime_library, exported, reference, tmp_path, sanitizers):
    bundle = copy_bundle(exported, tmp_path / "fox")
    give_plan(bundle, "fp32", "tensorrt")
    folder = build(
        f"cpp-tensorrt-{sanitizers.partition(',')[0]}",
        *(f"-DORT_HOME={ort_home}", f"-DTENSORRT_HOME={REPO / 'runtime/cpp/tests/played'}"),
        *(f"-DLLAMA_RUNTIME_SANITIZE={sanitizers}", "-DCMAKE_BUILD_TYPE=None"),
    )
    played = str(folder / "tests/libplayed_tensorrt.so")
    environment = {
        "LLAMA_RUNTIME_ONNXRUNTIME": str(onnxruntime_library),
        "LLAMA_RUNTIME_TENSORRT": played,
        "LLAMA_RUNTIME_CUDART": played,
        "LSAN_OPTIONS": f"suppressions={REPO / 'runtime/cpp/tests/lsan.supp'}",
        "TSAN_OPTIONS": "report_mutex_bugs=0:ignore_noninstrumented_modules=1",
    }
    words = [folder / "llama-run", bundle, PROMPT, "--device", "tensorrt", "--engine", "fp32", "-n", "50"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | environment)
    wanted = reference.generate(PROMPT, SamplingOptions(max_new_tokens=50)).text
    assert (done.returncode, done.stdout, done.stderr) == (0, wanted + "\n", "")


def test_a_build_without_tensorrt_says_so(open_model, bundle):
    with pytest.raises(AbiError, match="this build of the library has no TensorRT") as caught:
        open_model(bundle, device="tensorrt", engine="fp32")
    assert (caught.value.status, "-DTENSORRT_HOME=" in caught.value.hint) == ("library", True)
    with pytest.raises(AbiError, match="device is cuda, needs cpu or tensorrt"):
        open_model(bundle, device="cuda")
    with pytest.raises(AbiError, match="an engine is named, but device is cpu"):
        open_model(bundle, engine="fp32")
