"""Every stored weight is the checkpoint's."""

from __future__ import annotations

from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import Measurement


def measure(evidence: Evidence) -> Measurement:
    """Count the values that differ."""
    tensors = evidence.weights
    wrong = [tensor for tensor in tensors if tensor.differing]
    values = sum(tensor.values for tensor in tensors)
    detail = f"{values:,} values in {len(tensors)} tensors"
    if wrong:
        first = wrong[0]
        detail += f"; first {first.name}: {first.differing:,} of its {first.values:,}"
    return Measurement(sum(tensor.differing for tensor in wrong), detail)
