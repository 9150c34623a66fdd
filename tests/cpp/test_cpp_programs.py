"""``llama-run`` and its like as a person calls them: what they print, and one sentence where they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cpp_bundles import build

import llama_runtime
from llama_runtime import SamplingOptions

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def programs(ort_home) -> Path:
    return build("cpp", f"-DORT_HOME={ort_home}")


@pytest.fixture
def call(programs, onnxruntime_library):
    def run(
        name: str, *words: object, stdin: str = "", ok: bool = True, library: object = onnxruntime_library
    ):
        done = subprocess.run(
            [programs / name, *map(str, words)],
            input=stdin.encode(),
            capture_output=True,
            check=False,
            env={"LLAMA_RUNTIME_ONNXRUNTIME": str(library)} if library else {},
        )
        assert (done.returncode == 0) == ok, done.stderr
        return done.stdout.decode() if ok else (done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


def test_run_prints_pythons_text(call, demo_of):
    bundle = demo_of(verify=False)
    python = llama_runtime.load(bundle, threads=1)
    drawn = SamplingOptions(temperature=0.6, top_p=0.9, seed=11)
    wanted = python.generate("Once", drawn)
    options = ("--temperature", 0.6, "--top-p=0.9", "--seed", 11)
    assert call("llama-run", bundle, "Once", *options) == wanted.text + "\n"
    assert call("llama-run", bundle, *options, stdin="Once\n") == wanted.text + "\n"
    facts = json.loads(call("llama-run", bundle, "Once", *options, "--json", "--logprobs", 2))
    assert (facts["text"], tuple(facts["tokens"])) == (wanted.text, wanted.tokens)
    assert (facts["finish_reason"], facts["seed"]) == (wanted.finish_reason, 11)
    assert [len(row) for row in facts["logprobs"]] == [3] * len(wanted.tokens)
    ids = " ".join(map(str, wanted.prompt_tokens))
    assert call("llama-run", bundle, ids, "--ids", *options) == wanted.text + "\n"


def test_every_line_is_a_prompt(call, demo_of):
    bundle = demo_of(verify=False)
    python = llama_runtime.load(bundle, threads=1)
    lines = ["Once", "", "Lily"]
    printed = call("llama-run", bundle, "--stdin", "--json", "-n", 6, stdin="\n".join(lines) + "\n")
    found = [json.loads(line)["text"] for line in printed.splitlines()]
    assert found == [python.generate(line, SamplingOptions(max_new_tokens=6)).text for line in lines]


def test_stop_and_bias(call, demo_of):
    bundle, python = demo_of(verify=False), llama_runtime.load(demo_of(verify=False), threads=1)
    options = SamplingOptions(stop=("boy", "girl"), logit_bias={348: float("-inf")}, max_new_tokens=30)
    words = ("--stop", "boy", "--stop", "girl", "--logit-bias", "348=-inf", "-n", 30)
    assert call("llama-run", bundle, PROMPT, *words) == python.generate(PROMPT, options).text + "\n"


def test_selftest(call, demo_of):
    assert call("llama-selftest", demo_of()).startswith("ok: 2 known answers, 128 tokens, numbers within ")
    code, out, error = call("llama-selftest", demo_of(verify=False), ok=False)
    assert (code, out) == (2, "")
    assert "the manifest has no known answers\nhint: export again with verification\n" in error


def test_bench(call, demo_of):
    words = ("--prompt", 32, "--new", 8, "--repeat", 2, "--threads", 1)
    facts = json.loads(call("llama-bench", demo_of(verify=False), *words))
    assert facts["prompt_tokens"] == 32
    names = (
        "open_ms",
        "start_to_first_token_ms",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "peak_rss_mib",
    )
    assert all(facts[name] > 0 for name in names)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "BUNDLE is missing"),
        (("{}", "a", "b"), "there are more words than BUNDLE and PROMPT"),
        (("{}", "--frobnicate"), "unknown option --frobnicate"),
        (("{}", "a", "-n"), "-n needs a value"),
        (("{}", "a", "-n", "0"), "-n is '0', needs a number from 1 to"),
        (("{}", "a", "-n", "1.5"), "-n is '1.5', needs a whole number"),
        (("{}", "a", "--temperature", "hot"), "--temperature is 'hot', needs a number from 0"),
        (("{}", "a", "--top-p", "0"), "top_p is 0, needs more than 0"),
        (("{}", "a", "--seed", "-1"), "--seed is '-1', needs 0 to 2^64 - 1"),
        (("{}", "a", "--logit-bias", "x"), "--logit-bias is 'x', needs TOKEN=BIAS"),
        (("{}", "x y", "--ids"), "needs token ids"),
        (("{}", "a", "--stdin"), "PROMPT and --stdin are given"),
        (("{}", "a", "--system", "b"), "--system is given without --chat"),
        (("{}", "a", "--chat"), "the bundle has no chat template"),
        (("/nowhere", "a"), "/nowhere: not a bundle"),
        (("{}", "a", "-n", "1000"), "the model has 512 positions"),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence(call, demo_of, words, told):
    code, out, error = call("llama-run", *(word.format(demo_of(verify=False)) for word in words), ok=False)
    assert (code, out) == (2, "")
    assert error.startswith("error: ")
    assert told in error.splitlines()[0]
    assert len(error.splitlines()) <= 2


def test_a_library_that_cannot_be_loaded(call, demo_of, tmp_path):
    other = tmp_path / "libonnxruntime.so"
    other.write_bytes(b"no library")
    for library, told in ((tmp_path / "none.so", "cannot be loaded"), (other, "cannot be loaded")):
        code, _, error = call("llama-run", demo_of(verify=False), "a", ok=False, library=library)
        assert (code, told in error) == (2, True)
    compiler = shutil.which("c++")
    source = "struct B { void* (*get)(unsigned); const char* (*version)(); };"
    source += 'static void* get(unsigned) { return 0; } static const char* v() { return "1.9.0"; }'
    source += 'static B b = {get, v}; extern "C" B* OrtGetApiBase() { return &b; }'
    command = [compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", other]
    subprocess.run(command, input=source.encode(), check=True)
    _, _, error = call("llama-run", demo_of(verify=False), "a", ok=False, library=other)
    assert "ONNX Runtime 1.9.0 is too old, needs 1.18 or newer" in error


def test_an_output_that_cannot_be_written(programs, onnxruntime_library, demo_of):
    environment = {"LLAMA_RUNTIME_ONNXRUNTIME": str(onnxruntime_library)}
    for words in (["llama-run", "Once", "-n", "2"], ["llama-run", "Once", "--json"], ["llama-selftest"]):
        command = [programs / words[0], demo_of(), *words[1:]]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment
            )
        assert (done.returncode, done.stderr) == (2, "error: the output cannot be written\n")


def test_the_library_is_found_next_to_the_program(programs, onnxruntime_library, demo_of, tmp_path):
    shutil.copy(programs / "llama-run", tmp_path / "llama-run")
    (tmp_path / "libonnxruntime.so.1").symlink_to(onnxruntime_library)
    command = [tmp_path / "llama-run", demo_of(verify=False), "Once", "-n", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={})
    assert (done.returncode, done.stdout) == (0, " upon a\n"), done.stderr
