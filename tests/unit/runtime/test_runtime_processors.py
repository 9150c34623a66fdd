"""Every processor against transformers' own, and log-probabilities against torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from llama_runtime.errors import OptionError
from llama_runtime.logprobs import log_softmax, token_logprobs
from llama_runtime.options import SamplingOptions
from llama_runtime.processors import process
from llama_runtime.row import Row
from llama_runtime.sampling import best_first, candidates

V, EOS = 80, (2, 7)
RANDOM = np.random.default_rng(4)
PROMPT, TEXT = RANDOM.integers(0, V, 30).tolist(), RANDOM.integers(0, 12, 40).tolist()
SCORES = (RANDOM.normal(size=(20, V)) * 4).astype(np.float32)


def oracle(processor, scores, tokens):
    return processor(torch.tensor([tokens]), torch.tensor(scores[None]))[0].numpy()


@pytest.mark.parametrize("scores", SCORES[:5])
@pytest.mark.parametrize(
    ("options", "processor"),
    [
        ({"repetition_penalty": 1.3}, theirs.RepetitionPenaltyLogitsProcessor(1.3)),
        ({"repetition_penalty": 0.7}, theirs.RepetitionPenaltyLogitsProcessor(0.7)),
        ({"no_repeat_ngram_size": 1}, theirs.NoRepeatNGramLogitsProcessor(1)),
        ({"no_repeat_ngram_size": 2}, theirs.NoRepeatNGramLogitsProcessor(2)),
        ({"no_repeat_ngram_size": 3}, theirs.NoRepeatNGramLogitsProcessor(3)),
        ({"no_repeat_ngram_size": 100}, theirs.NoRepeatNGramLogitsProcessor(100)),
        (
            {"logit_bias": {3: 2.5, 9: -math.inf, 11: -1}},
            theirs.SequenceBiasLogitsProcessor({(3,): 2.5, (9,): -math.inf, (11,): -1.0}),
        ),
        (
            {"min_new_tokens": 41, "max_new_tokens": 64},
            theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), 41, list(EOS), device="cpu"),
        ),
        (
            {"min_new_tokens": 40, "max_new_tokens": 64},
            theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), 40, list(EOS), device="cpu"),
        ),
    ],
)
def test_a_processor_is_transformers(options, processor, scores):
    before = scores.copy()
    got = process(scores, SamplingOptions(**options), PROMPT, TEXT, EOS)
    assert got.dtype == np.float32 and (got == oracle(processor, scores, PROMPT + TEXT)).all()
    assert (scores == before).all()


def test_together_they_run_in_the_specified_order():
    options = SamplingOptions(
        logit_bias={5: 3.0}, repetition_penalty=1.5, no_repeat_ngram_size=2, min_new_tokens=50
    )
    chain = [
        theirs.SequenceBiasLogitsProcessor({(5,): 3.0}),
        theirs.RepetitionPenaltyLogitsProcessor(1.5),
        theirs.NoRepeatNGramLogitsProcessor(2),
        theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), 50, list(EOS), device="cpu"),
    ]
    want = SCORES[0]
    for processor in chain:
        want = oracle(processor, want, PROMPT + TEXT)
    assert (process(SCORES[0], options, PROMPT, TEXT, EOS) == want).all()


def test_presence_and_frequency_count_the_text_alone():
    options = SamplingOptions(presence_penalty=0.5, frequency_penalty=0.25)
    got = process(SCORES[0], options, PROMPT, TEXT, EOS)
    for token in range(V):
        want = np.float32(SCORES[0][token])
        if token in TEXT:
            want = want - np.float32(0.5) - np.float32(0.25) * np.float32(TEXT.count(token))
        assert got[token] == want
    assert process(SCORES[0], options, PROMPT, [], EOS).tolist() == SCORES[0].tolist()


def test_nothing_to_do_costs_no_copy():
    scores = SCORES[0]
    assert process(scores, SamplingOptions(temperature=0.7, top_k=3), PROMPT, TEXT, EOS) is scores


@pytest.mark.parametrize(
    "options",
    [
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 9, "min_p": 0.03},
        {"top_p": 0.9, "min_p": 0.2},
        {"top_k": 20, "top_p": 0.95, "min_p": 0.01, "temperature": 1.7},
    ],
)
def test_what_may_be_drawn_is_what_transformers_keeps(options):
    asked = SamplingOptions(**{"temperature": 1.0} | options)
    for scores in SCORES:
        want = oracle(theirs.TemperatureLogitsWarper(asked.temperature), scores, [0])
        if asked.top_k:
            want = oracle(theirs.TopKLogitsWarper(asked.top_k), want, [0])
        if asked.top_p < 1:
            want = oracle(theirs.TopPLogitsWarper(asked.top_p), want, [0])
        want = oracle(theirs.MinPLogitsWarper(asked.min_p), want, [0])
        ids, cumulative = candidates(scores, asked)
        assert set(ids.tolist()) == set(np.flatnonzero(np.isfinite(want)).tolist())
        assert cumulative.shape == ids.shape


def test_log_probabilities_are_torchs_and_top_breaks_ties_by_id():
    want = torch.log_softmax(torch.tensor(SCORES, dtype=torch.float64), -1).numpy()
    np.testing.assert_allclose(log_softmax(SCORES), want, rtol=0, atol=1e-12)
    tied = np.array([-1.0, -0.5, -1.0, -0.5, -1.0])
    told = token_logprobs(tied, 4, 3)
    assert (told.token, told.logprob, told.top) == (4, -1.0, ((1, -0.5), (3, -0.5), (0, -1.0)))
    assert token_logprobs(tied, 4, 0).top == () and len(token_logprobs(tied, 4, 99).top) == 5
    assert best_first(tied, 2).tolist() == [1, 3]


def test_a_row_tells_the_models_own_log_probabilities():
    options = SamplingOptions(logprobs=2, logit_bias={5: 100.0}, max_new_tokens=2)
    row = Row(PROMPT, options)
    pieces = [row.take(scores) for scores in SCORES[:2]]
    want = log_softmax(SCORES[:2])
    assert [piece.token for piece in pieces] == [5, 5] and pieces[1].finish_reason == "length"
    assert [piece.logprobs.logprob for piece in pieces] == want[:, 5].tolist()
    assert [piece.logprobs.top[0][0] for piece in pieces] == SCORES[:2].argmax(-1).tolist()


def test_a_row_that_may_choose_nothing_says_so():
    row = Row(PROMPT, SamplingOptions(logit_bias=dict.fromkeys(range(V), -math.inf)))
    with pytest.raises(OptionError, match="no token is left after 0 new ones"):
        row.take(SCORES[0])


@pytest.mark.parametrize(
    "options",
    [
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"repetition_penalty": math.nan},
        {"presence_penalty": math.inf},
        {"frequency_penalty": math.nan},
        {"length_penalty": math.inf},
        {"no_repeat_ngram_size": -1},
        {"min_new_tokens": 3, "max_new_tokens": 2},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"a": 1.0}},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {1: math.inf}},
        {"num_beams": 0},
        {"num_beams": 2.0},
        {"early_stopping": "always"},
        {"logprobs": -1},
        {"logprobs": True},
        {"num_return_sequences": 2},
        {"num_return_sequences": 3, "num_beams": 2},
        {"num_beams": 2, "temperature": 0.5},
        {"num_beams": 2, "stop": ("x",)},
        {"num_beams": 2, "regex": "a"},
        {"regex": "a", "grammar": "b"},
        {"regex": "a", "ignore_eos": True},
    ],
)
def test_an_option_that_cannot_be_is_named(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        SamplingOptions(**options)
