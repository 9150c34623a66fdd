"""Tokens that stand beside the vocabulary: what five files of a checkpoint say of them, as one table.

A fine-tune's ``<|im_start|>`` may be named in ``tokenizer.json``, ``tokenizer_config.json``,
``added_tokens.json`` or ``special_tokens_map.json`` alone; transformers reads them all, and so do we.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_export.checkpoint.json_file import read_json_object, shown
from llama_export.errors import CheckpointError

CONFIG, ADDED, SPECIAL = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# In the order in which transformers gives ids to those that have none.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_ONE_MODEL = "the tokenizer's files belong to different models; download the checkpoint again"
_CORRECT = "correct the entry, or download the file again"
_MAX_ID = 2**31 - 1


def read_settings(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    """Read one of the tokenizer's JSON files; empty where it is not there."""
    return read_json_object(files[name], name) if name in files else {}


def added_token(index: int, content: str, **flags: bool) -> dict[str, Any]:
    """One entry of ``tokenizer.json``'s list: found as it is written, and special unless said otherwise."""
    return {"id": index, "content": content} | dict.fromkeys(FLAGS, False) | {"special": True} | flags


def special_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """Which token plays which part: ``bos_token`` and its like, and the nameless ones by their number."""
    names = {key: _content(settings[key]) for key in _NAMED if settings.get(key)}
    for key in _LISTS:
        value = settings.get(key) or []
        listed = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        names |= {f"{key}.{index}": _content(token) for index, token in enumerate(listed)}
    return {key: name for key, name in names.items() if name}


def collect(
    files: Mapping[str, Path],
    vocab: Mapping[str, int],
    vocab_file: str,
    *,
    known: Sequence[dict[str, Any]] = (),
    defaults: Sequence[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Make one list of all added tokens that the checkpoint's files name.

    Args:
        files: The checkpoint's files by name.
        vocab: Piece to id, added tokens apart.
        vocab_file: What messages call the file that ``vocab`` is from.
        known: ``tokenizer.json``'s own list, whose flags stand; others can but make a token special.
        defaults: What the ids are that no file names: the special ones of a vocabulary without such a list.

    Returns:
        The entries by id, without a gap above the vocabulary.

    Raises:
        CheckpointError: Two files give one token different ids, or one id to different tokens.
    """
    table: dict[int, dict[str, Any]] = {}
    id_of, name_of = dict(vocab), {index: name for name, index in vocab.items()}

    def add(entry: dict[str, Any], source: str) -> None:
        index, content = entry["id"], entry["content"]
        other_id, other_name = id_of.setdefault(content, index), name_of.setdefault(index, content)
        if (other_id, other_name) != (index, content):
            other = f"{shown(content)} as {other_id}" if other_id != index else f"{shown(other_name)} there"
            found = f"{shown(content)} is token {index}, another file has {other}"
            raise CheckpointError(f"{source}: {found}", _ONE_MODEL)
        old = table.setdefault(index, entry)
        table[index] = old | {"special": old["special"] or entry["special"]}

    for entry in known:
        add(entry, vocab_file)
    for entry, source in _listed(files):
        add(entry, source)
    for entry in defaults:
        if name_of.get(entry["id"], entry["content"]) == entry["content"]:
            add(entry, vocab_file)
    for content in special_names(read_settings(files, SPECIAL) | read_settings(files, CONFIG)).values():
        # transformers numbers those that no file has an id for from the end on.
        add(added_token(id_of.get(content, max(name_of, default=-1) + 1), content), CONFIG)
    for index in range(max(vocab.values(), default=-1) + 1, max(table, default=-1)):
        # tokenizers numbers added tokens without gaps, so a gap is filled with what nobody writes.
        if index not in name_of:
            add(added_token(index, f"<|reserved_token_{index}|>"), vocab_file)
    return [table[index] for index in sorted(table)]


def _listed(files: Mapping[str, Path]) -> Iterator[tuple[dict[str, Any], str]]:
    """Entries, and the file they are from; the file that has flags goes first."""
    decoder = read_settings(files, CONFIG).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        found = f"added_tokens_decoder is {shown(decoder)}, must be an object"
        raise CheckpointError(f"{CONFIG}: {found}", _CORRECT)
    for key, entry in decoder.items():
        index = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else key
        flags = entry if isinstance(entry, dict) else {}
        # "normalized" would have names sought in normalised text, where SentencePiece's prefix hides them.
        kept = {flag: flags[flag] for flag in FLAGS if type(flags.get(flag)) is bool and flag != "normalized"}
        yield _checked(index, _content(entry), CONFIG, {"special": False} | kept), CONFIG
    for content, index in read_settings(files, ADDED).items():
        yield _checked(index, content, ADDED, {"special": False}), ADDED


def _checked(index: Any, content: str, source: str, flags: dict[str, bool]) -> dict[str, Any]:
    if type(index) is not int or not 0 <= index <= _MAX_ID or not content:
        found = f"{shown(content)} is token {shown(index)}, must be a name and its id"
        raise CheckpointError(f"{source}: {found}", _CORRECT)
    return added_token(index, content, **flags)


def _content(token: Any) -> str:
    """A token is written as its name, or as an object that has it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""
