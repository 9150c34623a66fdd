"""Does the bundle's tokenizer give the ids of the checkpoint's, as its own library reads it?

Two tokenizers of the bundle are compared: the one that our runtime opens, and ``tokenizer.json`` as other
runtimes open it, where names of special tokens in a text are those tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from llama_export.bundle.beside import BESIDE_JSON
from llama_export.checkpoint import Checkpoint
from llama_export.tokenizer import SourceTokenizer, open_source
from llama_export.tokenizer.awkward_texts import AWKWARD_TEXTS, vocabulary_texts
from llama_export.tokenizer.reference import Reference
from llama_runtime.manifest import Manifest
from llama_runtime.tokenizer import Tokenizer, open_tokenizer
from llama_runtime.vocabulary import byte_of_character

# Byte by byte: never a character, cut short, of a surrogate, too long, and followed by text.
_INVALID = (
    b"\xff",
    b"\xe2\x82",
    b"\xf0\x9f\xa6",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\x80abc",
    b"\xc3(",
    b"\xe2\x82A\xf0",
)


@dataclass(frozen=True)
class TokenizerDifference:
    """What was compared, and what differed.

    Attributes:
        library: Whose reading of the checkpoint's tokenizer was compared with.
        texts: How many texts.
        differing: In how many of them ids, or the text they give back, differ.
        first: What differs first, in words; empty where nothing does.
    """

    library: str
    texts: int
    differing: int
    first: str


def compare_tokenizers(
    folder: Path, manifest: Manifest, checkpoint: Checkpoint
) -> TokenizerDifference | None:
    """Compare a bundle's tokenizer with its checkpoint's on awkward texts and on every piece.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        checkpoint: What it was exported from.

    Returns:
        None where neither has a tokenizer.

    Raises:
        LlamaRuntimeError: The bundle's tokenizer cannot be opened.
        MissingExtraError: The library to compare with is not installed.
    """
    source = open_source(checkpoint)
    if source is None and manifest.tokenizer is None:
        return None
    if source is None or manifest.tokenizer is None:
        has = "bundle" if source is None else "checkpoint"
        return TokenizerDifference("none", 1, 1, f"the {has} alone has a tokenizer")
    ours, reference = open_tokenizer(folder, manifest.tokenizer, manifest.tokens), source.reference()
    beside = folder / BESIDE_JSON
    others = tokenizers.Tokenizer.from_file(str(beside if beside.is_file() else folder / "tokenizer.json"))
    checks = _checks(source, reference, ours, others)
    texts = [*AWKWARD_TEXTS, *vocabulary_texts(source.texts())]
    found = [f"{text[:40]!a}: {what}" for text in texts if (what := _first(checks, text))]
    invalid = _invalid_ids(source)
    found += [f"ids {ids}: text" for ids in invalid if ours.decode(ids) != reference.decode(ids)]
    first = found[0] if found else ""
    return TokenizerDifference(reference.library, len(texts) + len(invalid), len(found), first)


def _checks(
    source: SourceTokenizer, reference: Reference, ours: Tokenizer, others: tokenizers.Tokenizer
) -> dict[str, Callable[[str], bool]]:
    """What must hold for a text, by what to call it."""
    special = source.special
    front, behind = ([token[1]] if token else [] for token in (special.in_front, special.behind))
    added = {entry["id"] for entry in source.added_tokens}

    def back(text: str) -> bool:
        ids = reference.encode(text, False)
        return bool(added.intersection(ids)) or ours.decode(ids) == reference.decode(ids)

    return {
        "ids": lambda text: ours.encode(text) == [*front, *reference.encode(text, False), *behind],
        "ids with special tokens": lambda text: (
            ours.encode(text, False, parse_special=True) == reference.encode(text, True)
        ),
        "ids of tokenizer.json": lambda text: (
            others.encode(text).ids == [*front, *reference.encode(text, True), *behind]
        ),
        "text": back,
    }


def _first(checks: dict[str, Callable[[str], bool]], text: str) -> str:
    return next((what for what, holds in checks.items() if not holds(text)), "")


def _invalid_ids(source: SourceTokenizer) -> list[list[int]]:
    """Ids that give no valid UTF-8; none for tokenizers, whose rule for byte pieces is its own."""
    if source.kind == "tokenizers":
        return []
    character_of = {byte: character for character, byte in byte_of_character().items()}
    name_of = character_of if source.kind == "tiktoken" else {byte: f"<0x{byte:02X}>" for byte in range(256)}
    return [[source.vocab[name_of[byte]] for byte in data] for data in _INVALID]
