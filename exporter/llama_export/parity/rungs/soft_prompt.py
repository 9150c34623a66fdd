"""The keys and values of a learned prompt are those that the checkpoint gives."""

from __future__ import annotations

import numpy as np

from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import Measurement, largest_difference
from llama_export.parity.soft_prompt import soft_prompt_tensors


def measure(evidence: Evidence) -> Measurement:
    """Every layer's keys and values, from the bundle's file and computed anew."""
    assert evidence.past is not None
    wanted = [tensor.numpy() for tensor in soft_prompt_tensors(evidence.past).values()]
    scale = max(float(np.abs(tensor).max()) for tensor in wanted) or 1.0
    found = evidence.session.soft_prompt
    error = largest_difference(list(zip(found, wanted, strict=True)), scale)
    return Measurement(error, f"{wanted[0].shape[1]} positions in front of every text")


def left_out(evidence: Evidence) -> str | None:
    """Nothing to say where the bundle has none."""
    return None if evidence.checkpoint.soft_prompt else ""
