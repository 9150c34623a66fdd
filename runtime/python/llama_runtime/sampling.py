"""From logits to a token: pure functions in the order that FORMAT.md specifies.

temperature -> top_k -> top_p -> min_p -> draw. Candidates stand in descending order of logit, ties by
lower id; everything after the logits is float64, summed from the first candidate on.
"""

from __future__ import annotations

import math

import numpy as np

from llama_runtime.errors import SessionError
from llama_runtime.options import SamplingOptions
from llama_runtime.random_numbers import uniform

# exp(-40) is below half an ulp of 1, and sums start at 1: such a candidate changes no bit of them.
NEGLIGIBLE = 40.0


def greedy(logits: np.ndarray) -> int:
    """The token with the largest logit, the lowest id among equals.

    Args:
        logits: [V] floating point.

    Raises:
        SessionError: The largest logit is NaN or infinite.
    """
    token = int(logits.argmax())  # NaN counts as largest, so one look finds any.
    if not math.isfinite(logits[token]):
        raise SessionError(f"the logit of token {token} is {logits[token]}, needs a finite number")
    return token


def best_first(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest values, descending, equals by lower index.

    Args:
        values: [N] without NaN.
        count: How many; at most N are returned.

    Returns:
        [min(count, N)] int64.
    """
    count = min(count, values.size)
    if count == 0:
        return np.empty(0, np.int64)
    # All that reach the count-th place, so that ties there are broken by index too.
    reaching = np.flatnonzero(values >= np.partition(values, -count)[-count])
    order: np.ndarray = reaching[np.argsort(-values[reaching], kind="stable")]
    return order[:count]


def candidates(logits: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray, np.ndarray]:
    """What may be drawn, best first.

    Args:
        logits: [V] floating point, as the model gave them.
        options: ``temperature`` above 0; ``top_k``, ``top_p`` and ``min_p``.

    Returns:
        ids: [N] int64, by descending logit, then ascending id.
        cumulative: [N] float64, running sums of exp((logit - largest) / temperature).

    Raises:
        SessionError: The largest logit is NaN or infinite.
    """
    largest = float(logits[greedy(logits)])
    with np.errstate(over="ignore"):  # A tiny temperature makes all others -inf, as it should.
        scaled = (logits.astype(np.float64) - largest) / options.temperature  # [V], the largest is 0
    floor = -NEGLIGIBLE
    if 0 < options.top_k < scaled.size:
        floor = max(floor, float(np.partition(scaled, -options.top_k)[-options.top_k]))
    ids = np.flatnonzero(scaled >= floor)
    ids = ids[np.argsort(-scaled[ids], kind="stable")]
    ids = ids[: options.top_k or None]
    weights = np.exp(scaled[ids])  # [N], the first is 1
    cumulative = np.cumsum(weights)
    if options.top_p < 1:
        kept = int(np.searchsorted(cumulative, options.top_p * cumulative[-1], side="left")) + 1
        ids, weights, cumulative = ids[:kept], weights[:kept], cumulative[:kept]
    if options.min_p > 0:
        kept = int(np.count_nonzero(weights >= options.min_p))
        ids, cumulative = ids[:kept], cumulative[:kept]
    return ids, cumulative


def draw(ids: np.ndarray, cumulative: np.ndarray, number: float) -> int:
    """Walk the candidates, best first, until their running sum exceeds ``number`` of the whole.

    Args:
        ids: [N] from ``candidates``.
        cumulative: [N] from ``candidates``.
        number: In [0, 1).
    """
    return int(ids[np.searchsorted(cumulative, number * cumulative[-1], side="right")])


def sample(logits: np.ndarray, options: SamplingOptions, seed: int, index: int) -> int:
    """Choose the next token.

    Args:
        logits: [V] floating point.
        options: How to choose.
        seed: Of the draws.
        index: How many tokens this generation has drawn before; each takes one random number.

    Raises:
        SessionError: The largest logit is NaN or infinite.
    """
    if options.temperature == 0:
        return greedy(logits)
    return draw(*candidates(logits, options), uniform(seed, index))
