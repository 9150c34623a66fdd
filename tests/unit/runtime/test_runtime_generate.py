"""Generation from end to end on the toy: what ends it, what is refused, and the self-test."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import (
    POSITIONS,
    V,
    greedy_answer,
    known_answer,
    list_files,
    toy_logits,
    toy_weights,
    write_toy_bundle,
)
from vocabularies import train_sentencepiece

import llama_runtime
from llama_runtime.errors import ManifestError, OptionError, PromptError, SelftestError, TokenizerError
from llama_runtime.manifest import TokenizerFile, Tokens
from llama_runtime.options import SamplingOptions
from llama_runtime.random_numbers import uniform
from llama_runtime.sampling import candidates, draw

PROMPT = [1, 5, 9, 33]
WEIGHTS = toy_weights()
GREEDY, _ = greedy_answer(WEIGHTS, PROMPT, 12)


@pytest.fixture(scope="module", params=["flash", "sdpa"])
def bundle(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    write_toy_bundle(folder, request.param, known_answers=lambda w: (known_answer(w, PROMPT),))
    return folder


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A bundle with a tokenizer whose first V ids are specials, bytes of control characters and ASCII."""
    folder = tmp_path_factory.mktemp("speaking") / "bundle"
    manifest = write_toy_bundle(folder, "flash")
    train_sentencepiece(folder / "tokenizer.model")
    tokenizer = TokenizerFile("sentencepiece", "tokenizer.model", True, False)
    manifest = replace(manifest, tokenizer=tokenizer, files=list_files(folder))
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


def _rewrite(folder, **fields):
    manifest = replace(llama_runtime.read_manifest(folder), **fields)
    (folder / "manifest.json").write_text(manifest.to_json())


def test_greedy_is_what_numpy_computes(bundle):
    generation = llama_runtime.load(bundle, threads=1).generate(PROMPT, SamplingOptions(max_new_tokens=12))
    assert list(generation.tokens) == GREEDY
    assert generation.finish_reason == "length" and generation.text == ""
    assert list(generation.prompt_tokens) == PROMPT
    assert generation.timings.prefill_ms > 0 and generation.timings.decode_tokens_per_second(generation) > 0


def test_streaming_gives_the_same_tokens_one_at_a_time(bundle):
    generator = llama_runtime.load(bundle)
    pieces = list(generator.stream(np.array(PROMPT), SamplingOptions(max_new_tokens=12)))
    assert [piece.token for piece in pieces] == GREEDY
    assert [piece.finish_reason for piece in pieces] == [None] * 11 + ["length"]


def test_a_seed_repeats_the_specified_draws(bundle):
    generator = llama_runtime.load(bundle)
    options = SamplingOptions(temperature=3.0, top_k=20, top_p=0.9, seed=1234, max_new_tokens=10)
    tokens = []
    for index in range(10):
        logits = toy_logits(WEIGHTS, PROMPT + tokens)[-1]
        tokens.append(draw(*candidates(logits, options), uniform(1234, index)))
    assert list(generator.generate(PROMPT, options).tokens) == tokens != GREEDY[:10]


def test_a_seed_that_was_chosen_is_told(bundle):
    generator = llama_runtime.load(bundle)
    options = SamplingOptions(temperature=5.0, max_new_tokens=20)
    first, second = generator.generate(PROMPT, options), generator.generate(PROMPT, options)
    assert first.seed != second.seed and first.tokens != second.tokens
    assert generator.generate(PROMPT, replace(options, seed=first.seed)).tokens == first.tokens


def test_any_end_of_sequence_token_ends_and_may_be_ignored(bundle, tmp_path):
    generator = llama_runtime.load(bundle)
    never = next(token for token in range(V) if token not in GREEDY)
    eos = GREEDY[4]
    generator.session.manifest = replace(
        generator.manifest, tokens=Tokens(bos_token_id=1, eos_token_ids=(never, eos), pad_token_id=None)
    )
    generation = generator.generate(PROMPT, SamplingOptions(max_new_tokens=12))
    assert list(generation.tokens) == GREEDY[: GREEDY.index(eos) + 1]
    assert generation.finish_reason == "eos"
    ignoring = generator.generate(PROMPT, SamplingOptions(max_new_tokens=12, ignore_eos=True))
    assert list(ignoring.tokens) == GREEDY and ignoring.finish_reason == "length"


def test_limits_are_checked_before_any_work(bundle, monkeypatch):
    generator = llama_runtime.load(bundle)
    monkeypatch.setattr(generator.session, "prefill", lambda *_: pytest.fail("work was begun"))
    long = [3] * (POSITIONS - 10)
    with pytest.raises(PromptError, match=f"{POSITIONS - 10} tokens of prompt and 11 new ones") as caught:
        generator.stream(long, SamplingOptions(max_new_tokens=11))
    assert caught.value.hint == "ask for at most 10 new tokens"
    with pytest.raises(PromptError) as caught:
        generator.stream([3] * POSITIONS, SamplingOptions(max_new_tokens=1))
    assert caught.value.hint == "shorten the prompt"
    for prompt, message in (
        ([], "empty"),
        ([1, V], f"token {V}, the model knows 0 to {V - 1}"),
        ([1, -1], "token -1"),
        ([1, 2.5], "needs text or a sequence"),
        (b"bytes", "needs text or a sequence"),
        (7, "needs text or a sequence"),
        (["1"], "needs text or a sequence"),
    ):
        with pytest.raises(PromptError, match=message):
            generator.stream(prompt)


def test_the_last_position_can_be_used(bundle):
    options = SamplingOptions(max_new_tokens=10)
    assert len(llama_runtime.load(bundle).generate([3] * (POSITIONS - 10), options).tokens) == 10


def test_text_needs_a_tokenizer(bundle):
    generator = llama_runtime.load(bundle)
    with pytest.raises(TokenizerError, match="no tokenizer"):
        generator.stream("hello")
    with pytest.raises(TokenizerError, match="no tokenizer"):
        generator.stream(PROMPT, SamplingOptions(stop=("x",)))


def _text(generator, tokens):
    return "".join(generator.tokenizer.vocabulary.token_bytes(token).decode() for token in tokens)


def test_text_and_stop_strings(speaking):
    generator = llama_runtime.load(speaking)
    options = SamplingOptions(max_new_tokens=12)
    whole = generator.generate(PROMPT, options)
    assert list(whole.tokens) == GREEDY
    assert whole.text == _text(generator, GREEDY) and len(whole.text) >= 8
    stop = whole.text[4:6]
    stopped = generator.generate(PROMPT, replace(options, stop=(stop, "never")))
    assert stopped.finish_reason == "stop" and stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.tokens == whole.tokens[: len(stopped.tokens)] != whole.tokens
    # What might have become a stop string is shown when the length ends the text.
    held = replace(options, stop=(whole.text[-2:] + "never",))
    assert generator.generate(PROMPT, held).text == whole.text
    assert "".join(piece.text for piece in generator.stream(PROMPT, held)) == whole.text


def test_an_empty_prompt_is_bos_or_refused(speaking, tmp_path):
    generator = llama_runtime.load(speaking)
    assert generator.generate("", SamplingOptions(max_new_tokens=2)).prompt_tokens == (1,)
    manifest = llama_runtime.read_manifest(speaking)
    file = replace(manifest.tokenizer, add_bos=False)
    generator.tokenizer = llama_runtime.open_tokenizer(speaking, file, manifest.tokens)
    with pytest.raises(PromptError, match="the prompt is empty"):
        generator.stream("")


def test_the_top_level_call(speaking):
    text = llama_runtime.generate(speaking, PROMPT, max_new_tokens=12)
    assert text == llama_runtime.load(speaking).generate(PROMPT, SamplingOptions(max_new_tokens=12)).text
    with pytest.raises(OptionError, match=r"unknown option.*max_tokens"):
        llama_runtime.generate(speaking, PROMPT, max_tokens=3)
    with pytest.raises(PromptError, match="not valid UTF-8"):
        llama_runtime.generate(speaking, "\udc80", max_new_tokens=3)


def test_loading_checks_task_and_sizes(tmp_path):
    folder = tmp_path / "b"
    write_toy_bundle(folder, "flash")
    cache = llama_runtime.read_manifest(folder).cache
    _rewrite(folder, task="embedding", cache=None)
    with pytest.raises(ManifestError, match="task is embedding, needs text-generation"):
        llama_runtime.load(folder)
    _rewrite(folder, task="text-generation", cache=cache)
    with (folder / "onnx/model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ManifestError, match="bytes, the manifest lists"):
        llama_runtime.load(folder)


def test_the_selftest_passes_on_a_right_bundle(bundle):
    report = llama_runtime.selftest(bundle, threads=1)
    assert report.ok and (report.answers, report.tokens) == (1, 6)
    assert 0 < report.largest_logit_difference < 1e-4
    report.check()


@pytest.fixture
def answered(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_EXPORT_KERNELS", "off")  # with them everything is replayed twice
    folder = tmp_path / "b"
    write_toy_bundle(folder, "flash")

    def write(*answers):
        _rewrite(folder, known_answers=answers)
        return llama_runtime.selftest(folder)

    return write


def test_the_selftest_says_which_token_differs(answered):
    answer = known_answer(WEIGHTS, PROMPT, probes=())
    wrong = (answer.tokens[0], (answer.tokens[1] + 1) % V, *answer.tokens[2:])
    report = answered(answer, replace(answer, tokens=wrong))
    first = report.differences[0]
    assert (first.answer, first.position, first.what) == (1, 1, "token")
    assert (first.got, first.expected) == (answer.tokens[1], wrong[1])
    assert report.largest_logit_difference is None
    with pytest.raises(SelftestError, match="answer 1 at token 1: token is") as caught:
        report.check()
    assert caught.value.exit_code == 1


def test_a_near_tie_may_differ_and_the_rest_is_compared(answered):
    answer = known_answer(WEIGHTS, PROMPT, count=3)
    other = (answer.tokens[1] + 1) % V
    rest, _ = greedy_answer(WEIGHTS, [*PROMPT, answer.tokens[0], other], 3)
    tied = replace(answer, tokens=(answer.tokens[0], other, *rest), near_ties=(1,), probes=())
    report = answered(tied)
    assert report.ok and report.near_ties_taken == 1
    report = answered(replace(tied, tokens=(*tied.tokens[:-1], (rest[-1] + 1) % V)))
    assert [difference.position for difference in report.differences] == [4]


def test_the_selftest_says_which_logit_differs(answered):
    answer = known_answer(WEIGHTS, PROMPT)
    probe = answer.probes[1]
    moved = replace(probe, logits=(probe.logits[0], probe.logits[1] + 0.5))
    report = answered(replace(answer, probes=(answer.probes[0], moved)))
    assert [(d.what, d.position, d.expected) for d in report.differences] == [("logit", 5, moved.logits[1])]
    assert report.largest_logit_difference == pytest.approx(0.5, abs=1e-3)


def test_the_selftest_compares_the_tokenizer_too(speaking):
    text = "the quick"
    ids = tuple(llama_runtime.load(speaking).tokenizer.encode(text))
    answer = known_answer(WEIGHTS, PROMPT, prompt=text)
    _rewrite(speaking, known_answers=(answer,))
    difference = llama_runtime.selftest(speaking).differences[0]
    assert (difference.what, difference.got, difference.expected) == ("prompt", ids, tuple(PROMPT))


def test_a_bundle_without_known_answers_cannot_be_tested(answered):
    with pytest.raises(ManifestError, match="no known answers"):
        answered()


FORBIDDEN = ["torch", "onnx", "transformers", "llama_export", "onnxruntime", "sentencepiece", "tokenizers"]


def test_importing_needs_nothing_but_numpy():
    source = Path(llama_runtime.__file__).parents[1]
    program = (
        f"import json, sys, llama_runtime; print(json.dumps([m for m in {FORBIDDEN} if m in sys.modules]))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(source)}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_the_tokenizer_is_read_while_the_graph_is_loaded(speaking, monkeypatch):
    together = threading.Barrier(2)  # which neither passes before both are there

    def waiting(function):
        def wait(*arguments, **options):
            together.wait(timeout=60)
            return function(*arguments, **options)

        return wait

    for name in ("open_tokenizer", "open_session"):
        target = f"llama_runtime.tasks.opening.{name}"
        monkeypatch.setattr(target, waiting(getattr(llama_runtime.tasks.opening, name)))
    assert llama_runtime.load(speaking).generate(PROMPT, SamplingOptions(max_new_tokens=4)).tokens
