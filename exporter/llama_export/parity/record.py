"""Where a report goes: into the bundle's manifest, and into files for programs and people."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from llama_export.errors import OptionError
from llama_export.parity.page import page
from llama_export.parity.report import Report
from llama_runtime.manifest import FileEntry, Manifest

_KINDS = (".json", ".html")


def record(folder: Path, manifest: Manifest, report: Report, bundle: str) -> Manifest:
    """Write a passed verification into a staged bundle: its summary into the manifest, all of it beside that.

    Args:
        folder: The stage.
        manifest: As it stands there.
        report: What was measured.
        bundle: What the bundle will be called, for the page's title.

    Returns:
        The manifest as it now stands in the folder.
    """
    write_report(folder, report, bundle)
    entries = [*manifest.files, *(_entry(path) for path in report_files(folder).values())]
    proven = dataclasses.replace(
        manifest,
        files=tuple(sorted(entries, key=lambda entry: entry.path)),
        known_answers=report.known_answers,
        known_outputs=report.known_outputs,
        parity=report.summary(),
    )
    (folder / "manifest.json").write_text(proven.to_json(), encoding="utf-8")
    return proven


def _entry(path: Path) -> FileEntry:
    content = path.read_bytes()
    return FileEntry(path.name, len(content), hashlib.sha256(content).hexdigest())


def report_files(target: Path) -> dict[str, Path]:
    """Where a report will go, by kind; asked before any work, so that a wrong name costs none.

    Args:
        target: A folder, made where there is none; or a file whose name ends in .json or .html.

    Raises:
        OptionError: The file is of another kind.
    """
    if target.is_dir() or not target.suffix:
        return {kind: target / f"parity{kind}" for kind in _KINDS}
    if target.suffix not in _KINDS:
        raise OptionError(f"{target}: a report ends in .json or .html, or is a folder", "name one of these")
    return {target.suffix: target}


def write_report(target: Path, report: Report, bundle: str) -> None:
    """Write a report as ``parity.json`` and ``parity.html``, or as one of the two.

    Args:
        target: As for ``report_files``.
        report: What was measured.
        bundle: What it is of, for the title.

    Raises:
        OptionError: The file is of another kind, or cannot be written.
    """
    files = report_files(target)
    try:
        for kind, path in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            text = page(report, bundle) if kind == ".html" else json.dumps(report.to_dict(), indent=1) + "\n"
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{target}: cannot be written ({error.strerror})", "name another place") from None
