"""The proof travels with the bundle: known answers and parity go into the manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llama_export.parity.report import Report
from llama_runtime.manifest import Manifest


def record(folder: Path, manifest: Manifest, report: Report) -> Manifest:
    """Write a passed verification into a staged bundle's manifest.

    Returns:
        The manifest as it now stands in the folder.
    """
    proven = dataclasses.replace(manifest, known_answers=report.known_answers, parity=report.to_dict())
    (folder / "manifest.json").write_text(proven.to_json(), encoding="utf-8")
    return proven
