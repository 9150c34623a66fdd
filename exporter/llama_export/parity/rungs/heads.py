"""A task head's outputs: each text alone, all as padded batches, and one that fills the context."""

from __future__ import annotations

from llama_export.parity.head_evidence import HeadEvidence
from llama_export.parity.measurement import Measurement


def measure_outputs(evidence: HeadEvidence) -> Measurement:
    """Each text by itself."""
    return Measurement(
        evidence.error(evidence.alone(evidence.rows), evidence.wanted_outputs), _texts(evidence)
    )


def measure_left(evidence: HeadEvidence) -> Measurement:
    """Texts of unequal length, padded in front."""
    return _padded(evidence, left=True)


def measure_right(evidence: HeadEvidence) -> Measurement:
    """The same, padded behind."""
    return _padded(evidence, left=False)


def _padded(evidence: HeadEvidence, *, left: bool) -> Measurement:
    return Measurement(evidence.error(evidence.padded_rows(left), evidence.wanted_outputs), _texts(evidence))


def measure_context(evidence: HeadEvidence) -> Measurement:
    """One text as long as the model has positions."""
    error = evidence.error(evidence.alone([evidence.context]), [evidence.wanted_context_outputs])
    return Measurement(error, f"one text of {len(evidence.context):,} tokens")


def _texts(evidence: HeadEvidence) -> str:
    return f"{len(evidence.rows)} texts"
