"""The tokenizer's files, as a bundle and a converted checkpoint have them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llama_export.tokenizer.added_tokens import CONFIG
from llama_export.tokenizer.document import assemble, post_processor, write_document
from llama_export.tokenizer.model_file import read_model
from llama_export.tokenizer.source import JSON, MODEL, SourceTokenizer

WRITTEN = (MODEL, JSON, CONFIG)
# Of no meaning to the class we name, or of another meaning to some reader of it.
_OTHER_CLASSES = (
    *(
        "legacy",
        "add_prefix_space",
        "sp_model_kwargs",
        "use_default_system_prompt",
        "spaces_between_special_tokens",
    ),
    *(
        "auto_map",
        "tokenizer_file",
        "vocab_file",
        "special_tokens_map_file",
        "name_or_path",
        "backend",
        "is_local",
    ),
)


def write_tokenizer_files(source: SourceTokenizer, folder: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and, of SentencePiece, ``tokenizer.model``.

    Meta's ranks are not written: under the name of ``tokenizer.model`` other programs take them for
    SentencePiece's, and ``tokenizer.json`` says the same.

    Args:
        source: The checkpoint's tokenizer.
        folder: Where to; files of these names are replaced.
    """
    if source.model is not None and source.model.kind == "sentencepiece":
        shutil.copyfile(source.model.path, folder / MODEL)
    write_json(source, folder / JSON)
    text = json.dumps(bundle_settings(source), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def write_json(source: SourceTokenizer, path: Path) -> None:
    """Write ``tokenizer.json``; the author's own, byte for byte, where nothing in it had to change."""
    if source.author is not None and is_authors(source):
        shutil.copyfile(source.author.path, path)
    else:
        write_document(source.document(), path)


def is_authors(source: SourceTokenizer) -> bool:
    """Whether the author's ``tokenizer.json`` can stay as it is."""
    return source.author is not None and source.document() == source.author.document


def bundle_settings(source: SourceTokenizer) -> dict[str, Any]:
    """The author's settings, for the one class that takes ``tokenizer.json`` as it is.

    LlamaTokenizer, whose name most checkpoints give, builds another pipeline from the vocabulary alone in
    transformers 5 and in transformers.js, with other ids for runs of spaces and behind special tokens.
    """
    special = source.special
    settings = {key: _plain(value) for key, value in source.settings.items() if key not in _OTHER_CLASSES}
    for key, token in (("bos_token", special.bos), ("eos_token", special.eos)):
        if token is not None:
            settings[key] = token[0]
    return (
        {"clean_up_tokenization_spaces": False}
        | settings
        | {
            "add_bos_token": special.add_bos,
            "add_eos_token": special.add_eos,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
    )


def _plain(value: Any) -> Any:
    """A token by its name; transformers takes an object for one only where it is marked as such."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and "content" in value and "__type" not in value:
        return value["content"]
    return value


def write_tokenizer_json(model: Path, output: Path) -> None:
    """Convert a ``tokenizer.model`` that stands alone, with BOS in front of every text.

    Args:
        model: Of SentencePiece or Meta's ranks.
        output: ``tokenizer.json``; replaced if it is there.

    Raises:
        CheckpointError: The file is neither, or one whose ids could not be kept exactly.
    """
    read = read_model(model, add_prefix_space=True, llama_3_1=False)
    read.check_exact()
    bos = next((entry for entry in read.special if entry["content"] == read.bos), None)
    template = post_processor((bos["content"], bos["id"]) if bos else None, None)
    write_document(assemble(read.parts(), read.special, template), output)
