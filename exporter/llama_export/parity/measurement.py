"""What a rung hands to the ladder, and the few ways to measure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Pairs = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        value: In the unit of the rung's quantity.
        detail: Over what it was taken.
    """

    value: float
    detail: str = ""


def largest_difference(pairs: Pairs, scale: float) -> float:
    """The largest difference of (candidate, reference), as a fraction of ``scale``; a NaN is infinite."""
    worst = [float(np.abs(got - want).max(initial=0.0)) for got, want in pairs]
    # max() of Python would let a NaN through or not, depending on where it stands.
    largest = float(np.max(worst, initial=0.0)) / scale
    return largest if np.isfinite(largest) else float("inf")


def embedding_angles(got: np.ndarray, want: np.ndarray) -> list[float]:
    """1 less the cosine of the embeddings that [T, hidden_size] states give: their mean, and the last."""
    g, w = (states.astype(np.float64) for states in (got, want))
    pairs = ((g.mean(axis=0), w.mean(axis=0)), (g[-1], w[-1]))
    return [1 - float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other))) for one, other in pairs]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[T, V] logits to log probabilities, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    normalised: np.ndarray = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return normalised
