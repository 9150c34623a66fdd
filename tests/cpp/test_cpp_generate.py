"""The demo in C++ and in Python: the same tokens and text in every attention path and precision."""

from __future__ import annotations

import threading

import pytest
from c_abi import AbiError
from cpp_bundles import copy_bundle

import llama_runtime
from llama_runtime import SamplingOptions

PROMPT = "Once upon a time"
BUNDLES = {
    "flash": {},
    "sdpa": {"attention": "sdpa"},
    "eager": {"attention": "eager"},
    "flash, float16": {"weights": "copy", "precision": "float16"},
    "sdpa, bfloat16": {"attention": "sdpa", "weights": "copy", "precision": "bfloat16"},
    "eager, float16": {"attention": "eager", "weights": "copy", "precision": "float16"},
    "flash, int4": {"weights": "copy", "precision": "int4"},
    "flash, int4, int8 cache": {"weights": "copy", "precision": "int4", "cache": "int8"},
    "flash, int8": {"weights": "copy", "precision": "int8"},
    "sdpa, int4": {"attention": "sdpa", "weights": "copy", "precision": "int4"},
    "eager, int8": {"attention": "eager", "weights": "copy", "precision": "int8"},
}
OPTIONS = [
    {},
    {"temperature": 0.8, "top_p": 0.9, "seed": 11},
    {"temperature": 1.5, "top_k": 40, "min_p": 0.01, "seed": 2**64 - 1},
    {"repetition_penalty": 1.3, "min_new_tokens": 60, "max_new_tokens": 64},
    {"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.25, "seed": 3},
    {"no_repeat_ngram_size": 2, "logit_bias": {348: -100.0, 470: float("-inf")}, "max_new_tokens": 40},
    {"stop": ("friend", "dog", ". "), "max_new_tokens": 80},
    {"ignore_eos": True, "max_new_tokens": 150},
    {"max_new_tokens": 1, "logprobs": 3},
]


@pytest.mark.parametrize("name", BUNDLES)
def test_tokens_are_pythons(open_model, demo_of, name):
    bundle = demo_of(**{"verify": False} | BUNDLES[name])
    cpp, python = open_model(bundle), llama_runtime.load(bundle, threads=1)
    for options in OPTIONS:
        for prompt in (PROMPT, "", "Lily had a red ball. " * 20, [1, 347, 600]):
            got = cpp.generate(prompt, **options)
            wanted = python.generate(prompt, SamplingOptions(**options))
            found = (got.text, got.tokens, got.prompt_tokens, got.finish)
            assert found == (wanted.text, wanted.tokens, wanted.prompt_tokens, wanted.finish_reason), options


@pytest.mark.parametrize("attention", ["flash", "sdpa", "eager"])
def test_a_prompt_of_many_chunks(open_model, demo_of, attention):
    bundle = demo_of(verify=False, attention=attention)
    prompt = [1, *(3 + i * 7 % 900 for i in range(400))]
    wanted = llama_runtime.load(bundle, threads=1).generate(prompt, SamplingOptions(max_new_tokens=24))
    for chunk_tokens in (0, 1, 64, 399, 401):
        cpp = open_model(bundle, chunk_tokens=chunk_tokens)
        assert cpp.generate(prompt, max_new_tokens=24).tokens == wanted.tokens, chunk_tokens


def test_logprobs_are_pythons(open_model, demo_of):
    bundle = demo_of(verify=False)
    got = open_model(bundle).generate(PROMPT, logprobs=4, max_new_tokens=12)
    wanted = llama_runtime.load(bundle, threads=1).generate(
        PROMPT, SamplingOptions(logprobs=4, max_new_tokens=12)
    )
    assert len(got.logprobs) == 12
    for row, told in zip(got.logprobs, wanted.logprobs, strict=True):
        assert [token for token, _ in row] == [told.token, *(token for token, _ in told.top)]
        values = [told.logprob, *(value for _, value in told.top)]
        assert [value for _, value in row] == pytest.approx(values, abs=1e-5)


def test_a_seed_is_told_and_repeats_the_text(open_model, demo_of):
    cpp = open_model(demo_of(verify=False))
    first = cpp.generate(PROMPT, temperature=1.2)
    assert first.seed < 2**53
    assert cpp.generate(PROMPT, temperature=1.2, seed=first.seed) == first
    assert cpp.generate(PROMPT, temperature=1.2).seed != first.seed


def test_pieces_add_up_and_may_stop(open_model, demo_of):
    cpp, pieces = open_model(demo_of(verify=False)), []

    def on_piece(token, text, finish):
        pieces.append((token, text, finish))
        return len(pieces) != 7

    got = cpp.generate(PROMPT, on_piece)
    assert (len(pieces), got.finish) == (7, "cancelled")
    assert "".join(text for _, text, _ in pieces) == got.text
    assert tuple(token for token, _, _ in pieces) == got.tokens
    assert {finish for _, _, finish in pieces} == {None}
    pieces.clear()
    whole = cpp.generate(PROMPT, lambda *piece: pieces.append(piece) or True, max_new_tokens=9)
    assert pieces[-1][2] == whole.finish == "length"


def test_threads_share_a_model(open_model, demo_of):
    cpp = open_model(demo_of(verify=False))
    seeds = range(4)
    wanted = [cpp.generate(PROMPT, temperature=1.0, seed=seed) for seed in seeds]
    generators = [cpp.new_generator() for _ in seeds]
    got: dict[int, list] = {seed: [] for seed in seeds}

    def work(seed):
        for _ in range(3):
            got[seed].append(cpp.generate(PROMPT, None, generators[seed], temperature=1.0, seed=seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for generator in generators:
        cpp.library.lr_generator_free(generator)
    assert got == {seed: [wanted[seed]] * 3 for seed in seeds}


@pytest.mark.parametrize("attention", ["flash", "sdpa", "eager"])
def test_known_answers(open_model, demo_of, attention):
    report, differences = open_model(demo_of(attention=attention)).selftest()
    assert (report.answers, report.tokens, differences) == (2, 128, [])
    assert 0 < report.largest_difference < 1e-4


def test_wrong_known_answers_are_told(open_model, demo_of, tmp_path):
    def change(document):
        document["known_answers"][0]["tokens"][3] = 5
        document["known_answers"][0]["probes"][0]["logits"][0] += 1
        document["known_answers"][1]["prompt"] += "!"

    cpp = open_model(copy_bundle(demo_of(), tmp_path / "tiny", change))
    _, differences = cpp.selftest()
    told = "\n".join(differences)
    assert "answer 0 at token 3: token is " in told
    assert ", the reference has 5" in told
    assert "answer 0 at token 0: logit of " in told
    assert "answer 1: prompt is " in told


@pytest.mark.parametrize(
    ("damage", "status", "told"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest", "not a bundle"),
        (lambda folder: (folder / "tokenizer.bin").unlink(), "manifest", "tokenizer.bin: listed"),
        (lambda folder: (folder / "onnx/model.onnx").write_bytes(b"x"), "manifest", "1 bytes, the manifest"),
        (lambda folder: cut(folder / "onnx/model.onnx_data"), "manifest", "the manifest lists"),
        (lambda folder: spoil(folder / "onnx/model.onnx"), "session", "ONNX Runtime cannot load it"),
        (lambda folder: spoil(folder / "tokenizer.bin"), "tokenizer", "not a tokenizer.bin"),
    ],
    ids=["no manifest", "no tokenizer", "short graph", "cut weights", "spoilt graph", "spoilt tokenizer"],
)
def test_a_damaged_bundle_is_refused(open_model, demo_of, tmp_path, damage, status, told):
    folder = copy_bundle(demo_of(verify=False), tmp_path / "tiny")
    damage(folder)
    with pytest.raises(AbiError, match=told) as caught:
        open_model(folder)
    assert caught.value.status == status
    assert caught.value.hint or status == "session"


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def spoil(path):
    path.write_bytes(b"\xff" * path.stat().st_size)


def set_to(*keys, value):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        (set_to("version", value=2), "manifest", "version 2 is newer than this runtime"),
        (set_to("task", value="sorcery"), "manifest", "cache: text-generation alone has one"),
        (set_to("model", "path", value="../model.onnx"), "manifest", "model.path is "),
        (set_to("cache", "head_dim", value=0), "manifest", "cache.head_dim is 0, needs 1"),
        (set_to("cache", "key_name", value="k"), "manifest", "needs a name with {i}"),
        (set_to("cache", "num_hidden_layers", value=9), "session", "inputs differ from the manifest's"),
        (set_to("inputs", value=[]), "session", "inputs differ from the manifest's"),
        (set_to("tokens", "eos_token_ids", value=[4000]), "manifest", r"eos_token_ids\[0\] is 4000"),
        (set_to("soft_prompt", value={"path": "x", "positions": 1}), "manifest", "has a learned prompt"),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_a_manifest_that_is_not_the_graphs_is_refused(open_model, demo_of, tmp_path, change, status, told):
    with pytest.raises(AbiError, match=told) as caught:
        open_model(copy_bundle(demo_of(verify=False), tmp_path / "tiny", change))
    assert caught.value.status == status


def test_wrong_shapes_in_the_manifest_do_not_crash(open_model, demo_of, tmp_path):
    folder = copy_bundle(demo_of(verify=False), tmp_path / "tiny", set_to("cache", "head_dim", value=7))
    with pytest.raises(AbiError, match="ONNX Runtime cannot run the graph") as caught:
        open_model(folder).generate(PROMPT)
    assert caught.value.status == "session"


def test_without_tokenizer_bin_ids_alone(open_model, demo_of, tmp_path):
    def change(document):
        document["files"] = [entry for entry in document["files"] if entry["path"] != "tokenizer.bin"]

    cpp = open_model(copy_bundle(demo_of(verify=False), tmp_path / "tiny", change))
    assert cpp.has["tokenizer"] is False
    with pytest.raises(AbiError, match=r"the bundle has no tokenizer\.bin"):
        cpp.generate(PROMPT)
    whole = open_model(demo_of(verify=False))
    ids = whole.encode(PROMPT)
    got = cpp.generate(ids)
    assert (got.text, got.tokens) == ("", whole.generate(PROMPT).tokens)
