"""``tokenizer.bin``: the vocabulary as the C++ runtime reads it, sorted so that nothing is built at load.

FORMAT.md specifies it. Only the two pipelines of LLaMA's own tokenizers can be said in it; a tokenizer of
another kind gets no such file, and the reason is told.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from llama_export.errors import CheckpointError
from llama_export.tokenizer.document import assemble
from llama_export.tokenizer.rank_file import SPLIT
from llama_export.tokenizer.sentencepiece_json import SPACE
from llama_export.tokenizer.source import SourceTokenizer
from llama_runtime.vocabulary import BYTE_TOKEN, byte_of_character

FLAT_FILE = "tokenizer.bin"
MAGIC, VERSION = b"llamatok", 1
PIECES, BYTES = 0, 1
PREFIX, STRIP, WHOLE = 1, 2, 4  # flags of the file
SPECIAL, IN_TEXT = 1, 2  # flags of a token
NO_TOKEN, TEXT, BYTE = 0, 1, 2  # kinds of token
_MAX_TOKENS = 1 << 24
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_SPLIT = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}


class CannotSayError(Exception):
    """The tokenizer does something that the file has no words for."""


def write_flat_file(source: SourceTokenizer, path: Path) -> str | None:
    """Write ``tokenizer.bin``.

    Args:
        source: The checkpoint's tokenizer.
        path: The file; replaced if it is there.

    Returns:
        None, or why there is no file: what the tokenizer does beyond LLaMA's own ones.
    """
    try:
        content = flat_file(source)
    except CannotSayError as error:
        return str(error)
    path.write_bytes(content)
    return None


def why_not(source: SourceTokenizer) -> str | None:
    """Why there is no ``tokenizer.bin`` for a tokenizer; None where there is one."""
    try:
        if source.runs_model or source.author is None:  # then the pipeline is one of ours
            _check_exact(source)
            _check_added(source.added_tokens, normalized=False)
        else:
            _pipeline(source.author.document | {"added_tokens": source.added_tokens}, False)
    except CannotSayError as error:
        return str(error)
    return None


def flat_file(source: SourceTokenizer) -> bytes:
    """The file's content.

    Raises:
        CannotSayError: The tokenizer is of another kind.
    """
    document = _document(source)
    kind, flags = _pipeline(document, source.runs_model)
    vocab: dict[str, int] = document["model"]["vocab"]
    added = document["added_tokens"]
    text_of = {index: _text(name, kind) for name, index in vocab.items()}
    text_of |= {entry["id"]: _text(entry["content"], kind) for entry in added}
    T = max(text_of) + 1
    if T > _MAX_TOKENS:
        raise CannotSayError(f"it has ids up to {T - 1}, tokenizer.bin holds {_MAX_TOKENS}")
    kinds = np.zeros(T, np.uint8)
    kinds[list(text_of)] = TEXT
    if kind == PIECES:
        kinds[[index for name, index in vocab.items() if BYTE_TOKEN.fullmatch(name)]] = BYTE
    texts = [text_of.get(index, b"") for index in range(T)]
    merges = _merges(document["model"], vocab)
    opening = _opening(vocab, texts, kind, whole=bool(flags & WHOLE))
    names = [entry["content"].encode() for entry in added]
    unknown = vocab.get(document["model"].get("unk_token") or "", 0xFFFFFFFF)
    sizes = (T, len(opening), len(merges), len(added), sum(map(len, texts)), sum(map(len, names)))
    header = MAGIC + struct.pack("<10I", VERSION, kind, flags, unknown, *sizes)
    about = [(entry["id"], SPECIAL if entry["special"] else IN_TEXT) for entry in added]
    parts = (
        header,
        _ends(texts),
        np.array(opening, "<u4").tobytes(),
        merges.tobytes(),
        np.array(about, "<u4").reshape(-1, 2).tobytes(),
        _ends(names),
        kinds.tobytes(),
        *texts,
        *names,
    )
    return b"".join(parts)


def _document(source: SourceTokenizer) -> dict[str, Any]:
    """What the runtime runs, in ``tokenizer.json``'s terms."""
    if not source.runs_model:
        return source.document()
    _check_exact(source)
    assert source.model is not None
    return assemble(source.model.parts(), source.added_tokens, None)


def _check_exact(source: SourceTokenizer) -> None:
    try:
        if source.model is not None:
            source.model.check_exact()
    except CheckpointError as error:
        raise CannotSayError(error.message) from None


def _pipeline(document: dict[str, Any], runs_model: bool) -> tuple[int, int]:
    """Kind and flags of a pipeline that is one of the two."""
    model = document["model"]
    normalizer = _steps(document.get("normalizer"), "normalizers")
    pre_tokenizer = _steps(document.get("pre_tokenizer"), "pretokenizers")
    vocab = model["vocab"]
    if not pre_tokenizer and normalizer in ([_REPLACE], [_PREPEND, _REPLACE]):
        kind, alphabet = PIECES, [f"<0x{byte:02X}>" for byte in range(256)]
        decoder = [step["type"] for step in _steps(document.get("decoder"), "decoders")]
        flags = (PREFIX if len(normalizer) == 2 else 0) | (STRIP if decoder[-1:] == ["Strip"] else 0)
        if not model.get("byte_fallback") or model.get("ignore_merges"):
            raise CannotSayError("its pieces have no byte fallback, or are taken whole")
    elif not normalizer and _is_byte_level(pre_tokenizer):
        kind, alphabet = BYTES, list(byte_of_character())
        flags = WHOLE if model.get("ignore_merges") else 0
        if model.get("byte_fallback"):
            raise CannotSayError("its byte-level tokens have a byte fallback")
    else:
        steps = [step.get("type", "?") for step in (*normalizer, *pre_tokenizer)]
        raise CannotSayError(f"it cuts or changes texts by {' + '.join(steps) or 'nothing'}")
    if missing := [name for name in alphabet if name not in vocab]:
        raise CannotSayError(f"it has no token for {len(missing)} of the 256 bytes")
    _check_added(document["added_tokens"], normalized=bool(normalizer) and not runs_model)
    return kind, flags


def _is_byte_level(steps: list[dict[str, Any]]) -> bool:
    if len(steps) != 2 or steps[1].get("type") != "ByteLevel":
        return False
    plain = not steps[1].get("add_prefix_space") and not steps[1].get("use_regex", True)
    return steps[0] == _SPLIT and plain


def _steps(step: Any, inner: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return [*step[inner]] if step.get("type") == "Sequence" else [step]


def _check_added(added: list[dict[str, Any]], *, normalized: bool) -> None:
    for entry in added:
        flags = [name for name in ("single_word", "lstrip", "rstrip") if entry.get(name)]
        if normalized and entry.get("normalized"):
            flags.append("normalized")
        if flags:
            raise CannotSayError(f"its added token {entry['content']!r} is {' and '.join(flags)}")


def _text(name: str, kind: int) -> bytes:
    """What a token stands for, U+2581 not yet a space: encoding looks pieces up as they are written."""
    table = byte_of_character()
    if kind == BYTES and table.keys() >= set(name):
        return bytes(map(table.__getitem__, name))
    if kind == PIECES and (match := BYTE_TOKEN.fullmatch(name)):
        return bytes([int(match[1], 16)])
    return name.encode()


def _opening(vocab: dict[str, int], texts: list[bytes], kind: int, *, whole: bool) -> list[int]:
    """The tokens that text begins as, before any two are joined, in the order of their bytes."""
    characters = byte_of_character().keys()
    ids = [
        index
        for name, index in vocab.items()
        if (whole or len(name) == 1) and (kind == PIECES or characters >= set(name))
    ]
    return sorted(ids, key=texts.__getitem__)


def _merges(model: dict[str, Any], vocab: dict[str, int]) -> np.ndarray:
    """[M, 4]: left, right, rank and joint token, in the order of the first two."""
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    try:
        # Of a pair that is listed twice the last counts, as in tokenizers.
        rows = {
            (vocab[left], vocab[right]): (rank, vocab[left + right])
            for rank, (left, right) in enumerate(pairs)
        }
    except KeyError as error:
        raise CannotSayError(f"it joins tokens to {error.args[0]!r}, which is none") from None
    table = np.array([(*key, *value) for key, value in rows.items()], "<u4").reshape(-1, 4)
    ordered: np.ndarray = table[np.lexsort((table[:, 1], table[:, 0]))]
    return ordered


def _ends(parts: list[bytes]) -> bytes:
    """Where each part ends in all of them together."""
    return np.cumsum([len(part) for part in parts], dtype="<u4").astype("<u4").tobytes()
