"""The bundle's tokenizer gives the ids of the checkpoint's."""

from __future__ import annotations

from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import Measurement
from llama_export.parity.tokenizer_ids import compare_tokenizers


def measure(evidence: Evidence) -> Measurement:
    """Count the texts that differ."""
    found = compare_tokenizers(evidence.folder, evidence.manifest, evidence.checkpoint)
    if found is None:
        return Measurement(0, "no tokenizer")
    first = f"; first {found.first}" if found.first else ""
    return Measurement(found.differing, f"{found.texts:,} texts, against {found.library}{first}")


def left_out(evidence: Evidence) -> str | None:
    """Why it is not measured: neither side has a tokenizer."""
    names = {path.name for path in evidence.checkpoint.companions}
    has = evidence.manifest.tokenizer is not None or names & {"tokenizer.model", "tokenizer.json"}
    return None if has else "the checkpoint has no tokenizer"
