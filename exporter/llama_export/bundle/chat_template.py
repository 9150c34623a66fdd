"""The checkpoint's chat templates, wherever its tokenizer's authors put them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama_export.bundle.companions import token_ids
from llama_export.checkpoint import Checkpoint
from llama_export.errors import CheckpointError
from llama_export.tokenizer import open_source
from llama_runtime.manifest import ChatTemplates

TEMPLATE_FILE, TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json")
# What transformers offers to a template, by the names of tokenizer_config.json.
VARIABLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def chat_templates(checkpoint: Checkpoint) -> ChatTemplates | None:
    """Read all chat templates: files of their own (transformers 5), or in tokenizer_config.json.

    Raises:
        CheckpointError: A file is not UTF-8, or not JSON.
    """
    sources = _template_files(checkpoint.folder) or _template_settings(checkpoint.folder)
    return ChatTemplates(sources, special_tokens(checkpoint)) if sources else None


def special_tokens(checkpoint: Checkpoint) -> dict[str, str]:
    """What a template finds as ``bos_token``, ``eos_token``...; the ids' own names where no file says."""
    found: dict[str, str] = {}
    ids, tokenizer = token_ids(checkpoint), open_source(checkpoint)
    for name, token in (("bos_token", ids["bos"]), ("eos_token", next(iter(ids["eos"]), None))):
        content = None if token is None or tokenizer is None else tokenizer.token_name(token)
        if content is not None:
            found[name] = content
    for file in reversed(SETTINGS_FILES):
        settings = read_settings(checkpoint.folder / file)
        for name in VARIABLES:
            value = settings.get(name)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str):
                found[name] = content
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object from a file that may be absent, which is an empty one.

    Raises:
        CheckpointError: It is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.name}: not JSON ({error})", "download it again") from None
    return settings if isinstance(settings, dict) else {}


def _template_files(folder: Path) -> dict[str, str]:
    found = {"default": folder / TEMPLATE_FILE}
    found |= {path.stem: path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    return {name: _read_template(path) for name, path in found.items() if path.is_file()}


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise CheckpointError(f"{path.name}: not UTF-8 ({error})", "download it again") from None


def _template_settings(folder: Path) -> dict[str, str]:
    value = read_settings(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    named = {entry.get("name"): entry.get("template") for entry in entries}
    return {
        name: source for name, source in named.items() if isinstance(name, str) and isinstance(source, str)
    }
