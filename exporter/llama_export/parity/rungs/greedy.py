"""The greedy tokens are the reference's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import Measurement, largest_difference
from llama_export.parity.report import TokenChoice


def choices(evidence: Evidence) -> list[tuple[TokenChoice, ...]]:
    """Each continuation's tokens, and what the reference would have chosen after the same tokens."""
    return [
        tuple(_choices(found.tokens, answers(wanted, len(found.prompt), len(found.tokens))))
        for found, wanted in zip(evidence.continued, evidence.wanted, strict=True)
    ]


def answers(wanted: np.ndarray, prompt_tokens: int, new_tokens: int) -> np.ndarray:
    """[n, V]: of a whole pass, the logits that choose the n new tokens."""
    return wanted[prompt_tokens - 1 : prompt_tokens - 1 + new_tokens]


def _choices(tokens: tuple[int, ...], wanted: np.ndarray) -> Iterator[TokenChoice]:
    for token, logits in zip(tokens, wanted, strict=True):
        second, first = np.partition(logits, -2)[-2:]
        yield TokenChoice(token, int(logits.argmax()), float(first - second), float(first - logits[token]))


def measured_error(evidence: Evidence) -> float:
    """The largest logit difference of the continuations, absolute: what makes a tie near."""
    pairs = [
        (np.concatenate((c.prefill, c.decode)), w[: len(c.prefill) + len(c.decode)])
        for c, w in zip(evidence.continued, evidence.wanted, strict=True)
    ]
    return largest_difference(pairs, 1.0)


def judge(found: list[tuple[TokenChoice, ...]], error: float) -> Measurement:
    """Count tokens that are not the reference's, unless it prefers its own by less than twice the error."""
    tokens = [choice for row in found for choice in row]
    other = [choice for choice in tokens if choice.chosen != choice.wanted]
    wrong = [choice for choice in other if not choice.behind < 2 * error]
    detail = f"{len(tokens)} tokens; near ties decided otherwise: {len(other) - len(wrong)}"
    return Measurement(len(wrong), detail)


def measure(evidence: Evidence) -> Measurement:
    """Count them."""
    return judge(choices(evidence), measured_error(evidence))
