"""Stage 5: the output folder: what stands where, staged beside the target and published as a whole."""

from __future__ import annotations

from llama_export.bundle.companions import write_companions
from llama_export.bundle.manifest import build_manifest
from llama_export.bundle.place import place_file
from llama_export.bundle.stage import Stage, check_target

__all__ = ["Stage", "build_manifest", "check_target", "place_file", "write_companions"]
