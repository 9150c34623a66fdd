"""Log-probabilities of the chosen token and of the likeliest ones, as the model gave them.

They are the model's own: before any processor, temperature or grammar.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llama_runtime.sampling import best_first


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was.

    Attributes:
        token: The one that was chosen.
        logprob: Its natural log-probability.
        top: (token, log-probability) of the likeliest, best first, the lower id first among equals.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logits to natural log-probabilities.

    Args:
        logits: [..., V] floating point.

    Returns:
        [..., V] float64.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def token_logprobs(logprobs: np.ndarray, token: int, count: int) -> TokenLogprobs:
    """Look a token and the ``count`` likeliest up.

    Args:
        logprobs: [V] float64, from ``log_softmax``.
        token: The one that was chosen.
        count: How many others to tell.
    """
    top = tuple((int(other), float(logprobs[other])) for other in best_first(logprobs, count))
    return TokenLogprobs(token, float(logprobs[token]), top)
