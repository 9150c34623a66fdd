"""Verify a bundle as it was published or copied: first that its files are whole, then what it computes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llama_export.checkpoint import open_merged
from llama_export.errors import OptionError
from llama_export.parity.ladder import verify_bundle
from llama_export.parity.report import Report
from llama_export.progress import byte_progress
from llama_runtime.manifest import Manifest, check_hashes, read_manifest


def verify(
    bundle: Path,
    checkpoint: Path,
    *,
    adapters: Sequence[Path] = (),
    texts: Sequence[str] | None = None,
) -> Report:
    """Check a bundle's hashes, that the checkpoint is its source, and then climb the ladder.

    Args:
        bundle: Its folder.
        checkpoint: The folder it was exported from.
        adapters: Those that were merged into it, in the same order.
        texts: Prompts; the default ones where None.

    Raises:
        ManifestError: A file of the bundle is missing or was changed.
        OptionError: The checkpoint is another one.
        LlamaExportError: The checkpoint cannot be read.
    """
    manifest = read_manifest(bundle)
    source = open_merged(checkpoint, adapters)
    check_bundle_hashes(bundle, manifest)
    digest_of = {entry.path: entry.sha256 for entry in manifest.source}
    proven = {entry.sha256 for entry in manifest.files}
    for path in source.weight_files:
        expected = digest_of.get(source.source_name(path))
        # A linked data file has just been hashed: the same inode needs no second reading.
        if expected in proven and _is_linked(bundle, manifest, path):
            continue
        if expected is None or _sha256(path) != expected:
            raise OptionError(
                f"{path.name}: is not a file that {bundle} was made from, by SHA-256",
                "name the checkpoint that was exported",
            )
    return verify_bundle(bundle, source, texts=texts)


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
