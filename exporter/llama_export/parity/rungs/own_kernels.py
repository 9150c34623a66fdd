"""The same work once more with our own kernels, which ONNX Runtime then computes with instead of its own."""

from __future__ import annotations

from llama_export.parity.candidate import read_again
from llama_export.parity.evidence import Evidence
from llama_export.parity.head_evidence import HeadEvidence
from llama_export.parity.measurement import Measurement, largest_difference
from llama_runtime.kernels import level_of
from llama_runtime.tasks.batch import run_padded


def left_out(evidence: Evidence) -> str | None:
    """Whether there is nothing to measure: no kernels for this bundle on this machine."""
    return "" if evidence.fast_session is None else None


def measure_logits(evidence: Evidence) -> Measurement:
    """Prompts, tokens one at a time and chunks."""
    session = evidence.fast_session
    assert session is not None
    got = [read_again(session, found) for found in evidence.continued]
    error = largest_difference(list(zip(got, evidence.wanted, strict=True)), evidence.scale)
    return Measurement(error, f"{sum(map(len, got))} tokens, {level_of(session.kernels)} instructions")


def measure_outputs(evidence: HeadEvidence) -> Measurement:
    """A task head's texts, each by itself and all as one batch, padded on either side."""
    session = evidence.fast_session
    assert session is not None
    rows, names = evidence.rows, evidence.names
    alone = [run_padded(session, [row], names)[0] for row in rows]
    ways = [alone, *(run_padded(session, rows, names, left=left) for left in (True, False))]
    error = max(evidence.error(found, evidence.wanted_outputs) for found in ways)
    return Measurement(error, f"{len(rows)} texts, {level_of(session.kernels)} instructions")
