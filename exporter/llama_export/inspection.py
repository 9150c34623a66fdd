"""What a folder is: a checkpoint that can or cannot be exported, or a bundle and what it proves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama_export import require_export_extra
from llama_export.errors import ConfigError
from llama_runtime.engine_file import engine_names
from llama_runtime.extras import attention_names, hidden_state_names
from llama_runtime.manifest import MANIFEST_NAME, check_structure, read_manifest


def inspect(folder: Path) -> dict[str, Any]:
    """Describe a checkpoint or bundle from its headers alone.

    Args:
        folder: Its folder; one with a manifest is a bundle.

    Returns:
        Plain data. ``kind`` is ``"checkpoint"`` or ``"bundle"``; a checkpoint that cannot be exported has
        ``supported`` false and says why.

    Raises:
        CheckpointError: It is no checkpoint, or a damaged one.
        ManifestError: It is a damaged bundle.
    """
    return _inspect_bundle(folder) if (folder / MANIFEST_NAME).is_file() else _inspect_checkpoint(folder)


def _inspect_checkpoint(folder: Path) -> dict[str, Any]:
    require_export_extra()  # here, since bundles are looked at where they run: without torch
    from llama_export.checkpoint import open_checkpoint
    from llama_export.weights.precision import PRECISION_OF

    try:
        checkpoint = open_checkpoint(folder)
    except ConfigError as error:
        return {
            "kind": "checkpoint",
            "folder": str(folder),
            "supported": False,
            "reason": error.message,
            "hint": error.hint,
        }
    tensors = checkpoint.tensors.values()
    return {
        "kind": "checkpoint",
        "folder": str(folder),
        "supported": True,
        "config": asdict(checkpoint.config),
        "parameters": sum(tensor.nbytes // tensor.dtype.itemsize for tensor in tensors),
        "precision": PRECISION_OF[checkpoint.dtype],
        "weight_files": {path.name: path.stat().st_size for path in checkpoint.weight_files},
        "companions": [path.name for path in checkpoint.companions],
        "notes": list(checkpoint.notes),
        "tensors": {tensor.name: [PRECISION_OF[tensor.dtype], *tensor.shape] for tensor in tensors},
    }


def _inspect_bundle(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    check_structure(folder, manifest)
    return {
        "kind": "bundle",
        "folder": str(folder),
        "format_version": manifest.version,
        "task": manifest.task,
        "precision": manifest.precision,
        "weights": manifest.weights,
        "attention": manifest.attention,
        "graph": asdict(manifest.model),
        "cache": manifest.cache and asdict(manifest.cache),
        "soft_prompt": manifest.soft_prompt and asdict(manifest.soft_prompt),
        "hidden_states": hidden_state_names(manifest),
        "attentions": attention_names(manifest),
        "embed_tokens": manifest.embed_tokens,
        "classification": manifest.classification and asdict(manifest.classification),
        "limits": asdict(manifest.limits),
        "tokenizer": manifest.tokenizer and manifest.tokenizer.kind,
        "files": {entry.path: entry.size_bytes for entry in manifest.files},
        "known_answers": len(manifest.known_answers),
        "known_outputs": len(manifest.known_outputs),
        "parity": manifest.parity,
        "engines": engine_names(folder),
        "created_with": manifest.created_with,
    }
