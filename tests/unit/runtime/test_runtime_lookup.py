"""Prompt lookup: the drafts, when a choice is certain, and that the tokens are those of plain decoding."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from toy_bundle import write_toy_bundle

import llama_runtime
from llama_runtime import lookup
from llama_runtime.certainty import is_certain
from llama_runtime.errors import OptionError
from llama_runtime.lookup import Drafts
from llama_runtime.manifest import TensorSpec
from llama_runtime.options import SamplingOptions
from llama_runtime.prefix_cache import PrefixCache
from llama_runtime.sampling import sample

CUTS = ({}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.9, "min_p": 0.05})
PROMPT = [7, 9, 3, 7, 9, 3, 7, 9]


@pytest.fixture(scope="module", params=["flash", "sdpa"])
def generator(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    write_toy_bundle(folder, request.param)
    return llama_runtime.load(folder)


@pytest.fixture
def counted(monkeypatch):
    """How many tokens each run of the graph read."""
    runs = []
    extend, decode = PrefixCache.extend, PrefixCache.decode
    monkeypatch.setattr(PrefixCache, "extend", lambda self, t: (runs.append(len(t)), extend(self, t))[1])
    monkeypatch.setattr(PrefixCache, "decode", lambda self, t: (runs.append(1), decode(self, t))[1])
    return runs


def test_a_draft_is_what_followed_the_longest_equal_run_last():
    drafts = Drafts([1, 2, 3, 4, 9, 2, 3, 5, 6, 2, 3])
    assert drafts.draft(2) == [5, 6] and drafts.draft(6) == [5, 6, 2, 3, 5, 6]
    drafts.extend([4])
    assert drafts.draft(3) == [9, 2, 3]  # behind 2 3 4, the longest, though 3 5 came later
    drafts.extend([7])
    assert drafts.draft(3) == [] and Drafts([5]).draft(3) == [] and Drafts([5, 5, 5]).draft(2) == [5, 5]


@pytest.mark.parametrize("temperature", [0.0, 0.05, 0.7, 3.0])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_certain_choice_withstands_every_move_of_the_logits(temperature, cut):
    draw = np.random.default_rng(3)
    options = SamplingOptions(temperature=temperature, **cut)
    certain = 0
    for trial in range(300):
        logits = draw.normal(0, draw.choice([0.5, 4]), 40).astype(np.float32)
        tolerance = float(draw.choice([1e-4, 1e-2, 0.1]))
        if not is_certain(logits, options, 5, trial, tolerance):
            continue
        certain += 1
        chosen = sample(logits, options, 5, trial)
        for _ in range(20):
            # The ends of the range do most harm.
            moved = logits + tolerance * draw.choice([-1, 1], 40).astype(np.float32)
            assert sample(moved, options, 5, trial) == chosen
    assert certain > 60


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_choice_at_an_edge_is_not_certain(cut):
    options = SamplingOptions(temperature=1.0, **cut)
    logits = np.array([2, 2 + 1e-3, 0, -1, -2, -3, -4, -5, -6, -7, -8], np.float32)
    for index in range(50):
        if sample(logits, options, 1, index) in (0, 1):
            assert not is_certain(logits, options, 1, index, 1e-3)
    assert not is_certain(logits, SamplingOptions(), 1, 0, 1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 1.0, "seed": 4},
        {"temperature": 0.6, "seed": 5, "top_p": 0.8, "repetition_penalty": 0.8},
        {"no_repeat_ngram_size": 5, "frequency_penalty": 0.1, "logprobs": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("moves", [1e-4, 0.5])
def test_tokens_are_those_of_plain_decoding(generator, changes, count, moves, counted, monkeypatch):
    monkeypatch.setattr(lookup, "_moves", lambda session: moves)
    options = SamplingOptions(max_new_tokens=90, **changes)
    plain = generator.generate(PROMPT, options)
    counted.clear()
    ahead = generator.generate(PROMPT, replace(options, prompt_lookup_num_tokens=count))
    assert ahead.tokens == plain.tokens and ahead.finish_reason == plain.finish_reason
    assert max(counted) <= count + 1


def test_a_session_is_asked_once_whether_rows_are_independent(generator, monkeypatch):
    monkeypatch.setattr(lookup, "_MOVES_OF", WeakKeyDictionary())
    measured = lookup._moves(generator.session)
    assert measured in (0.0, lookup.FLOAT32_MOVES)
    decode = generator.session.decode
    monkeypatch.setattr(type(generator.session), "decode", lambda self, *given: decode(*given) + 1)
    assert lookup._moves(generator.session) == measured
    monkeypatch.setattr(lookup, "_MOVES_OF", WeakKeyDictionary())
    assert lookup._moves(generator.session) == lookup.FLOAT32_MOVES


def test_a_text_that_repeats_itself_takes_fewer_runs(generator, counted):
    options = SamplingOptions(max_new_tokens=120, prompt_lookup_num_tokens=6, logit_bias={7: 1e3})
    generation = generator.generate(PROMPT, options)
    assert generation.tokens == (7,) * 120
    assert len(counted) < 25


def test_the_cache_is_left_at_what_it_holds(generator):
    cache = PrefixCache(generator.session)
    options = SamplingOptions(max_new_tokens=40, prompt_lookup_num_tokens=8, temperature=1.0, seed=2)
    row = generator.new_row(PROMPT, options)
    for piece in generator.pieces(row, cache):
        if piece.finish_reason is None and len(row.tokens) == 20:
            break  # left in the middle
    held = list(cache.tokens)
    read = cache.read()
    assert held[: len(PROMPT)] == PROMPT and held[len(PROMPT) :][:19] == row.tokens[:19]
    whole = PrefixCache(generator.session)
    whole.prefill(held, 1)
    for array, expected in zip(read, whole.read(), strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-5)


def test_the_last_position_is_not_passed(generator, counted):
    limit = generator.manifest.limits.max_position_embeddings
    options = SamplingOptions(
        max_new_tokens=limit - len(PROMPT), prompt_lookup_num_tokens=16, logit_bias={7: 1e3}
    )
    assert len(generator.generate(PROMPT, options).tokens) == limit - len(PROMPT)


def test_what_cannot_read_ahead_is_refused(generator):
    with pytest.raises(OptionError, match="num_beams is 2 with prompt_lookup_num_tokens"):
        SamplingOptions(num_beams=2, prompt_lookup_num_tokens=4)
    with pytest.raises(OptionError, match="prompt_lookup_num_tokens is -1, needs at least 0"):
        SamplingOptions(prompt_lookup_num_tokens=-1)
    manifest = generator.manifest
    turning = replace(
        manifest,
        optional_inputs=(*manifest.optional_inputs, TensorSpec("rope_length", "int64", (1,))),
    )
    with pytest.raises(OptionError, match="rotary angles depend on the length"):
        lookup.check_lookup(turning)
