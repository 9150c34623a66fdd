"""Stage 8: does the bundle compute what the eager PyTorch model computes? A ladder, lowest rung first."""

from __future__ import annotations

from llama_export.parity.record import record, report_files, write_report
from llama_export.parity.report import Outcome, Report
from llama_export.parity.verification import verify_bundle
from llama_export.parity.verify import verify

__all__ = [
    "Outcome",
    "Report",
    "record",
    "report_files",
    "verify",
    "verify_bundle",
    "write_report",
]
