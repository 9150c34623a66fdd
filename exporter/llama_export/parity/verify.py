"""Verify a bundle as it was published or copied: first that its files are whole, then what it computes."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from llama_export.checkpoint import Checkpoint, open_merged
from llama_export.errors import OptionError
from llama_export.model import Task
from llama_export.parity.report import Outcome, Report
from llama_export.parity.verification import verify_bundle
from llama_export.progress import byte_progress
from llama_runtime.manifest import Manifest, check_hashes, read_manifest
from llama_runtime.selftest import selftest


def verify(
    bundle: Path,
    checkpoint: Path | None,
    *,
    adapters: Sequence[Path] = (),
    texts: Sequence[str] | None = None,
    quick: bool = False,
    force: bool = False,
) -> Report:
    """Check a bundle's hashes, that the checkpoint is its source, and then climb the ladder.

    Args:
        bundle: Its folder.
        checkpoint: The folder it was exported from; None replays the bundle's known answers alone.
        adapters: Those that were merged into it, in the same order.
        texts: Prompts; the default ones where None.
        quick: Leave out padded batches and the whole context.
        force: Compare with a checkpoint that is not the source, by its hash, all the same.

    Raises:
        ManifestError: A file of the bundle is missing or was changed.
        OptionError: The checkpoint is another one.
        LlamaExportError: The checkpoint cannot be read.
    """
    start = time.monotonic()
    manifest = read_manifest(bundle)
    task = cast(Task, manifest.task)
    source = None if checkpoint is None else open_merged(checkpoint, adapters, task)
    if source is not None and manifest.soft_prompt is not None and source.soft_prompt is None:
        raise OptionError(f"{bundle}: has a learned prompt, no adapter brings one", "name it with --adapter")
    check_bundle_hashes(bundle, manifest)
    if source is None:
        return _replay(bundle, manifest, start)
    stranger = _not_a_source(bundle, manifest, source)
    if stranger is None:
        return verify_bundle(bundle, source, texts=texts, quick=quick)
    what = f"{stranger}: is not a file that {bundle} was made from, by SHA-256"
    if not force:
        raise OptionError(
            what, "name the checkpoint that was exported, or add --force to compare all the same"
        )
    report = verify_bundle(bundle, source, texts=texts, quick=quick)
    return dataclasses.replace(report, notes=(*report.notes, f"{what}; compared because of --force"))


def _replay(bundle: Path, manifest: Manifest, start: float) -> Report:
    """Hashes are right; the known answers are all that is left to compare with."""
    found = selftest(bundle)
    detail = f"{found.answers} known answers, {found.tokens} tokens"
    if found.differences:
        detail += f"; first {found.differences[0]}"
    rung = Outcome(
        "known answers",
        len(found.differences),
        0,
        "tokens and logits that differ from those recorded at export",
        "each known answer carries its own tolerance",
        detail,
    )
    note = (
        "no checkpoint was named: hashes and known answers alone were checked, the weights' values were not"
    )
    return Report(
        rungs=(rung,),
        tokens_compared=sum(len(answer.tokens) for answer in manifest.known_answers),
        near_ties=found.near_ties_taken,
        known_answers=(),
        seconds=time.monotonic() - start,
        reference=None,
        notes=(note,),
    )


def _not_a_source(bundle: Path, manifest: Manifest, source: Checkpoint) -> str | None:
    """The first weight file that the bundle was not made from; None where all are its source."""
    digest_of = {entry.path: entry.sha256 for entry in manifest.source}
    proven = {entry.sha256 for entry in manifest.files}
    for name, path in source.source_files.items():
        expected = digest_of.get(name)
        # A linked data file has just been hashed: the same inode needs no second reading.
        if expected in proven and _is_linked(bundle, manifest, path):
            continue
        if expected is None or _sha256(path) != expected:
            return path.name
    return None


def check_bundle_hashes(bundle: Path, manifest: Manifest) -> None:
    """Check every file's SHA-256, with progress.

    Raises:
        ManifestError: A file is missing or was changed.
    """
    total = sum(entry.size_bytes for entry in manifest.files)
    done = 0
    with byte_progress("hashes", total) as advance:

        def show(now: int, _: int) -> None:
            nonlocal done
            advance(now - done)
            done = now

        check_hashes(bundle, manifest, show)


def _is_linked(bundle: Path, manifest: Manifest, path: Path) -> bool:
    return any((bundle / entry.path).samefile(path) for entry in manifest.files)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
