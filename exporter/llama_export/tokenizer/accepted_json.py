"""What a ``tokenizer.json`` may do, so that text comes back as it went in; all else is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, shown
from llama_export.errors import CheckpointError

NAME = "tokenizer.json"
_NORMALIZERS = {"Prepend", "Replace", "NFC"}
_PRE_TOKENIZERS = {"Split", "ByteLevel", "Digits", "Metaspace", "Punctuation"}
_NOT_LLAMA = "no tokenizer of the LLaMA family has this; take the tokenizer of the checkpoint's author"


def check_document(document: dict[str, Any]) -> None:
    """Refuse what would lose text, draw lots, or number two tokens alike.

    Raises:
        CheckpointError: With one sentence that names what it is.
    """
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        got = shown(model.get("type")) if isinstance(model, dict) else "missing"
        raise CheckpointError(f'{NAME}: model is {got}, must be "BPE"', _NOT_LLAMA)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise CheckpointError(f"{NAME}: model.{key} is {shown(model[key])}, must be null", _NOT_LLAMA)
    _check_steps(document.get("normalizer"), "normalizer", "normalizers", _NORMALIZERS)
    _check_steps(document.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS)
    _check_vocab(model.get("vocab"))
    added = document.get("added_tokens", [])
    for entry in added if isinstance(added, list) else [added]:
        ok = (
            isinstance(entry, dict) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int
        )
        if not ok or not entry["content"] or entry["id"] < 0:
            raise CheckpointError(
                f"{NAME}: added_tokens has {shown(entry)}, must be a token and its id", DOWNLOAD_AGAIN
            )


def _check_steps(step: Any, what: str, inner: str, allowed: set[str]) -> None:
    for kind, options in _steps(step, inner):
        removes = options.get("behavior") == "Removed"
        if kind not in allowed or removes:
            named = f"{kind}, which removes text" if removes else kind
            raise CheckpointError(
                f"{NAME}: {what} is {named}, must be of {', '.join(sorted(allowed))}", _NOT_LLAMA
            )


def _steps(step: Any, inner: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if step is None:
        return
    if not isinstance(step, dict) or not isinstance(step.get("type"), str):
        yield shown(step), {}
    elif step["type"] == "Sequence":
        steps = step.get(inner)
        for part in steps if isinstance(steps, list) else [steps]:
            yield from _steps(part if part is not None else "null", inner)
    else:
        yield step["type"], step


def _check_vocab(vocab: Any) -> None:
    if not isinstance(vocab, dict) or not vocab:
        raise CheckpointError(
            f"{NAME}: model.vocab is {shown(vocab)}, must be an object of ids", DOWNLOAD_AGAIN
        )
    name_of: dict[int, str] = {}
    for name, index in vocab.items():
        if type(index) is not int or index < 0:
            raise CheckpointError(
                f"{NAME}: {shown(name)} is token {shown(index)}, must be an id", DOWNLOAD_AGAIN
            )
        if index in name_of:
            both = f"{shown(name_of[index])} and {shown(name)}"
            raise CheckpointError(f"{NAME}: {both} are both token {index}", DOWNLOAD_AGAIN)
        name_of[index] = name
