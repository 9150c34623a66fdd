"""Are the bundle's files the ones that were published? Sizes at every load, hashes on request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llama_runtime.errors import ManifestError

if TYPE_CHECKING:
    from llama_runtime.manifest import Manifest

CHUNK_BYTES = 8 << 20
COPY_AGAIN = "the bundle is incomplete or was changed; copy the whole folder again, or export again"

Progress = Callable[[int, int], None]


def check_structure(folder: Path, manifest: Manifest) -> None:
    """Check that every listed file is there with its size; reads no contents.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.

    Raises:
        ManifestError: A file is missing, not a file, or has another size.
    """
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise ManifestError(f"{path}: listed in the manifest, but missing", COPY_AGAIN)
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            raise ManifestError(
                f"{path}: {size_bytes} bytes, the manifest lists {entry.size_bytes}", COPY_AGAIN
            )


def check_hashes(folder: Path, manifest: Manifest, progress: Progress | None = None) -> None:
    """Check the SHA-256 of every listed file; reads the whole bundle once, in chunks.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.
        progress: Called with (bytes done, bytes in all) after each chunk.

    Raises:
        ManifestError: A file is missing, has another size, or other contents.
    """
    check_structure(folder, manifest)
    done_bytes, all_bytes = 0, sum(entry.size_bytes for entry in manifest.files)
    for entry in manifest.files:
        path, digest = folder / entry.path, hashlib.sha256()
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    done_bytes += len(chunk)
                    if progress:
                        progress(done_bytes, all_bytes)
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read ({error.strerror})", COPY_AGAIN) from None
        if digest.hexdigest() != entry.sha256:
            raise ManifestError(
                f"{path}: SHA-256 is {digest.hexdigest()}, the manifest lists {entry.sha256}", COPY_AGAIN
            )
