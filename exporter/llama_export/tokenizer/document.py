"""The parts of a ``tokenizer.json`` put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def assemble(
    parts: dict[str, Any], added_tokens: list[dict[str, Any]], post_processor: dict[str, Any] | None
) -> dict[str, Any]:
    """Put a whole document together.

    Args:
        parts: ``normalizer``, ``pre_tokenizer``, ``decoder`` and ``model``.
        added_tokens: Entries by id.
        post_processor: What puts BOS and EOS around a text.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": post_processor,
        "decoder": parts["decoder"],
        "model": parts["model"],
    }


def post_processor(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> dict[str, Any] | None:
    """What puts BOS in front of each sequence and EOS behind it.

    Args:
        bos: Its name and id; None where none is put.
        eos: The same.
    """
    if bos is None and eos is None:
        return None

    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        special = [
            [{"SpecialToken": {"id": token[0], "type_id": type_id}}] if token else [] for token in (bos, eos)
        ]
        return [*special[0], {"Sequence": {"id": name, "type_id": type_id}}, *special[1]]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": [*sequence("A", 0), *sequence("B", 1)],
        "special_tokens": {
            token[0]: {"id": token[0], "ids": [token[1]], "tokens": [token[0]]}
            for token in (bos, eos)
            if token
        },
    }


def write_document(document: dict[str, Any], path: Path) -> None:
    """Write ``tokenizer.json`` on one line: half as long as indented, and a browser loads it whole."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text + "\n", encoding="utf-8")
