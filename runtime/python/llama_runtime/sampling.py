"""From logits to a token: pure functions in the order that FORMAT.md specifies.

temperature -> top_k -> top_p -> draw. Candidates stand in descending order of logit, ties by
lower id; everything after the logits is float64, summed from the first candidate on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llama_runtime.errors import OptionError, SessionError
from llama_runtime.random_numbers import uniform

# exp(-40) is below half an ulp of 1, and sums start at 1: such a candidate changes no bit of them.
NEGLIGIBLE = 40.0


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What to generate and how; checked when made.

    Attributes:
        temperature: 0 is greedy, and leaves the options below without effect.
        top_k: How many of the best candidates to keep; 0 is all.
        top_p: Keep the fewest best candidates that hold this share of the probability.
        seed: Of the draws, below 2**64; None takes one from the system.
        max_new_tokens: Where to end at the latest.
        stop: Strings that end the text and are not part of it.
        ignore_eos: Go on after an end-of-sequence token (for measuring).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for field in ("top_k", "max_new_tokens", "seed"):
            value = getattr(self, field)
            if type(value) is not int and not (field == "seed" and value is None):
                raise OptionError(f"{field} is {value!r}, needs an integer")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise OptionError(f"temperature is {self.temperature}, needs a number of at least 0")
        if self.top_k < 0:
            raise OptionError(f"top_k is {self.top_k}, needs at least 0, which is all")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p is {self.top_p}, needs more than 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise OptionError(f"seed is {self.seed}, needs 0 to 2**64 - 1")
        if self.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens is {self.max_new_tokens}, needs at least 1")
        if isinstance(self.stop, str) or not all(isinstance(stop, str) and stop for stop in self.stop):
            raise OptionError(
                f"stop is {self.stop!r}, needs strings that are not empty", "write stop=('...',)"
            )


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


def candidates(logits: np.ndarray, options: SamplingOptions) -> tuple[np.ndarray, np.ndarray]:
    """What may be drawn, best first.

    Args:
        logits: [V] floating point, as the model gave them.
        options: ``temperature`` above 0; ``top_k`` and ``top_p``.

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
    cumulative = np.cumsum(np.exp(scaled[ids]))
    if options.top_p < 1:
        kept = int(np.searchsorted(cumulative, options.top_p * cumulative[-1], side="left")) + 1
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
