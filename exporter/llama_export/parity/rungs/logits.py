"""Logits of whole passes: prefill, decoding, a chunk behind a past, padded batches, the whole context."""

from __future__ import annotations

from llama_export.parity.candidate import read_again
from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import Measurement, largest_difference
from llama_runtime.kernels import level_of


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


def measure_kernels(evidence: Evidence) -> Measurement:
    """Prompts, tokens one at a time and chunks once more, with our own kernels."""
    session = evidence.fast_session
    assert session is not None
    got = [read_again(session, found) for found in evidence.continued]
    error = largest_difference(list(zip(got, evidence.wanted, strict=True)), evidence.scale)
    return Measurement(error, f"{sum(map(len, got))} tokens, {level_of(session.kernels)} instructions")


def no_kernels(evidence: Evidence) -> str | None:
    """Whether there is nothing to measure: no kernels for this bundle on this machine."""
    return "" if evidence.fast_session is None else None
