"""The sampler against its specification, written out the slow way, and the generator's vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llama_runtime.errors import OptionError, SessionError
from llama_runtime.options import SamplingOptions
from llama_runtime.random_numbers import splitmix64, uniform
from llama_runtime.sampling import candidates, greedy, sample


def test_splitmix64_known_vectors():
    # The published sequence for this seed.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [splitmix64(1234567, i) for i in range(4)] == expected
    assert splitmix64(0, 0) == 0xE220A8397B1DCDAF
    assert splitmix64((1 << 64) - 1, 3) < 1 << 64


def test_uniform_is_exact_and_spread():
    numbers = np.array([uniform(42, i) for i in range(4096)])
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02 and abs(np.histogram(numbers, 16)[0] - 256).max() < 80
    assert uniform(42, 7) == (splitmix64(42, 7) >> 11) / 2**53


def test_greedy_takes_the_lowest_id_among_equals():
    assert greedy(np.array([1.0, 3.0, 3.0, 2.0], np.float32)) == 1
    assert greedy(np.array([-np.inf, -5.0], np.float32)) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad, temperature):
    logits = np.array([0.0, 1.0, bad, 2.0], np.float32)
    with pytest.raises(SessionError, match="logit of token 2"):
        sample(logits, SamplingOptions(temperature=temperature), 0, 0)


def specified(logits, options, seed, index):
    """FORMAT.md's sampler, one scalar at a time."""
    largest = max(float(x) for x in logits)
    z = [(float(x) - largest) / options.temperature for x in logits]
    order = sorted(range(len(z)), key=lambda token: (-z[token], token))
    order = order[: options.top_k or None]
    weights = [math.exp(z[token]) for token in order]
    total = 0.0
    for weight in weights:
        total += weight
    kept, running = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        running += weight
        kept.append((token, running))
        if options.top_p < 1 and running >= options.top_p * total:
            break
    target = uniform(seed, index) * running
    return next(token for token, upto in kept if upto > target)


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=1.0),
        SamplingOptions(temperature=0.7, top_k=5),
        SamplingOptions(temperature=1.3, top_p=0.9),
        SamplingOptions(temperature=2.0, top_k=40, top_p=0.5),
        SamplingOptions(temperature=0.05),
        SamplingOptions(temperature=30.0, top_p=0.99),
    ],
)
def test_sampling_is_what_format_md_specifies(options):
    random = np.random.default_rng(3)
    for index in range(60):
        # Coarse logits, so that ties are frequent, with a tail far below.
        logits = np.round(random.normal(size=300) * 4, 1).astype(np.float32)
        logits[random.integers(0, 300, 100)] -= 500
        assert sample(logits, options, 11, index) == specified(logits, options, 11, index)


def test_candidates_break_ties_by_lower_id_at_the_edge_of_top_k():
    logits = np.array([1.0, 2.0, 1.0, 2.0, 1.0], np.float32)
    ids, _ = candidates(logits, SamplingOptions(temperature=1.0, top_k=3))
    assert ids.tolist() == [1, 3, 0]


def test_top_p_keeps_the_candidate_that_reaches_the_share():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float64))
    counts = {
        p: len(candidates(logits, SamplingOptions(temperature=1.0, top_p=p))[0]) for p in (0.4, 0.7, 0.9)
    }
    assert counts == {0.4: 1, 0.7: 2, 0.9: 3}


def test_frequencies_follow_the_probabilities():
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    options = SamplingOptions(temperature=1.0)
    tokens = [sample(np.log(shares).astype(np.float32), options, 5, index) for index in range(4000)]
    assert abs(np.bincount(tokens, minlength=4) / 4000 - shares).max() < 0.03


def test_a_tiny_temperature_is_greedy_without_overflow():
    logits = np.array([1.0, 1.5, -np.inf, 1.4], np.float32)
    assert {sample(logits, SamplingOptions(temperature=5e-324), 1, i) for i in range(50)} == {1}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"seed": -1},
        {"seed": 1 << 64},
        {"seed": 0.5},
        {"max_new_tokens": 0},
        {"max_new_tokens": "8"},
        {"stop": "END"},
        {"stop": ("",)},
        {"stop": (1,)},
    ],
)
def test_an_option_out_of_range_is_named(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        SamplingOptions(**options)
