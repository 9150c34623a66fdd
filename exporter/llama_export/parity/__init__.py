"""Stage 8: does the bundle compute what the eager PyTorch model computes? A ladder, lowest rung first."""

from __future__ import annotations

from llama_export.parity.ladder import verify_bundle
from llama_export.parity.record import record
from llama_export.parity.report import Report, Rung
from llama_export.parity.verify import verify

__all__ = ["Report", "Rung", "record", "verify", "verify_bundle"]
