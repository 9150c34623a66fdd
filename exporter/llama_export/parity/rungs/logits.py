"""Logits of whole passes: prefill, decoding, a chunk behind a past, padded batches, the whole context."""

from __future__ import annotations

from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import Measurement, largest_difference


def measure_prefill(evidence: Evidence) -> Measurement:
    """Each prompt in one run."""
    pairs = [
        (c.prefill, w[: len(c.prompt)]) for c, w in zip(evidence.continued, evidence.wanted, strict=True)
    ]
    return Measurement(
        largest_difference(pairs, evidence.scale),
        f"{sum(len(got) for got, _ in pairs)} tokens of {len(pairs)} prompts",
    )


def measure_decode(evidence: Evidence) -> Measurement:
    """One token at a time on top of the cache, against the reference's one full pass."""
    pairs = [
        (c.decode, w[len(c.prompt) : len(c.prompt) + len(c.decode)])
        for c, w in zip(evidence.continued, evidence.wanted, strict=True)
    ]
    count = sum(len(got) for got, _ in pairs)
    return Measurement(largest_difference(pairs, evidence.scale), f"{count} tokens, one at a time")


def measure_chunk(evidence: Evidence) -> Measurement:
    """Several tokens in one run on top of the cache."""
    pairs = [
        (c.chunked, w[-len(c.chunked) :]) for c, w in zip(evidence.continued, evidence.wanted, strict=True)
    ]
    longest = max(len(got) for got, _ in pairs)
    return Measurement(largest_difference(pairs, evidence.scale), f"{longest} tokens behind a cached past")


def measure_left(evidence: Evidence) -> Measurement:
    """Prompts of unequal length, padded in front, then one more token each."""
    return _padded(evidence, left=True)


def measure_right(evidence: Evidence) -> Measurement:
    """The same, padded behind."""
    return _padded(evidence, left=False)


def _padded(evidence: Evidence, *, left: bool) -> Measurement:
    pairs = evidence.padded(left)
    return Measurement(largest_difference(pairs, evidence.scale), f"{len(pairs)} rows, then a token each")


def measure_context(evidence: Evidence) -> Measurement:
    """All positions that the model has, prefilled in chunks."""
    error = largest_difference([(evidence.context_logits, evidence.wanted_context)], evidence.scale)
    return Measurement(error, f"{len(evidence.context):,} tokens, the logits of the last ones")
