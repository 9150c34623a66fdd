"""Whether a choice is so clear that rounding cannot change it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from llama_runtime.options import SamplingOptions
from llama_runtime.random_numbers import uniform
from llama_runtime.sampling import NEGLIGIBLE, candidates


def is_certain(logits: np.ndarray, options: SamplingOptions, seed: int, index: int, tolerance: float) -> bool:
    """Whether ``sample`` chooses the same token however each logit moves by up to ``tolerance``.

    It errs to False alone.

    Args:
        logits: [V] floating point, V at least 2.
        options: As for ``sample``.
        seed: As for ``sample``.
        index: As for ``sample``.
        tolerance: At least 0, in units of the logits.
    """
    second, best = np.partition(logits, -2)[-2:].astype(np.float64)
    temperature, apart = options.temperature, 2 * tolerance  # two logits may come so much nearer
    if best - second > apart + NEGLIGIBLE * temperature:
        return True  # greedy, or drawn where no other has any weight
    if apart >= NEGLIGIBLE / 4 * temperature:
        return False  # greedy and near, or drawn from all that might be the best
    _, sums = candidates(logits, replace(options, top_k=0, top_p=1.0, min_p=0.0))
    weights = np.diff(sums, prepend=0.0)  # [N], best first
    moves = math.exp(apart / temperature)  # the ratio of any two weights, by this factor at most
    surely, perhaps = _kept(weights, sums, options, 1 / moves), _kept(weights, sums, options, moves)
    number = uniform(seed, index)
    place = int(np.searchsorted(sums, number * sums[_kept(weights, sums, options, 1.0) - 1], side="right"))
    if place >= surely:
        return False
    beside = weights[max(0, place - 1) : place + 2]
    if any(upper <= lower * moves for upper, lower in pairwise(beside)):
        return False  # two that may change places
    before, through = float(sums[place]) - float(weights[place]), float(sums[place])
    latest_begin = before * moves / (before * moves + float(sums[surely - 1]) - before)
    earliest_end = through / (through + (float(sums[perhaps - 1]) - through) * moves)
    return latest_begin <= number < earliest_end


def _kept(weights: np.ndarray, sums: np.ndarray, options: SamplingOptions, favour: float) -> int:
    """How many candidates top_k, top_p and min_p keep where ``favour`` multiplies a candidate's weight."""
    kept = min(options.top_k or sums.size, sums.size)
    if options.top_p < 1:
        before = sums[:kept] - weights[:kept]
        kept = int(np.count_nonzero(before < options.top_p * (before + (sums[kept - 1] - before) * favour)))
    if options.min_p > 0:
        kept = min(kept, int(np.count_nonzero(weights * favour >= options.min_p)))
    return kept
