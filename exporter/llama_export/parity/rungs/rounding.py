"""What rounding costs: the bundle against the unrounded checkpoint, on running text."""

from __future__ import annotations

import numpy as np

from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import Measurement, largest_difference, log_softmax


def measure_logits(evidence: Evidence) -> Measurement:
    """The largest difference of any logit."""
    got, want = evidence.text_logits
    return Measurement(largest_difference([(got, want)], float(np.abs(want).max())), _detail(evidence))


def measure_kl(evidence: Evidence) -> Measurement:
    """The mean divergence of the distributions of the next token."""
    got, want = (log_softmax(logits) for logits in evidence.text_logits)
    divergence = (np.exp(want) * (want - got)).sum(axis=-1)  # [T]
    return Measurement(float(divergence.mean()), _detail(evidence))


def measure_top1(evidence: Evidence) -> Measurement:
    """How often the likeliest next token is another."""
    got, want = evidence.text_logits
    return Measurement(float((got.argmax(axis=-1) != want.argmax(axis=-1)).mean()), _detail(evidence))


def measure_perplexity(evidence: Evidence) -> Measurement:
    """How much likelier or unlikelier the text itself becomes."""
    got, want = (_perplexity(logits, evidence.text) for logits in evidence.text_logits)
    detail = f"{want:.4g} unrounded, {got:.4g} in the bundle, {_detail(evidence)}"
    return Measurement(abs(got / want - 1), detail)


def _perplexity(logits: np.ndarray, text: tuple[int, ...]) -> float:
    if len(text) < 2:
        return float("nan")
    chosen = np.take_along_axis(log_softmax(logits[:-1]), np.array(text[1:])[:, None], axis=-1)
    return float(np.exp(-chosen.mean()))


def _detail(evidence: Evidence) -> str:
    return f"{len(evidence.text)} tokens of text"
