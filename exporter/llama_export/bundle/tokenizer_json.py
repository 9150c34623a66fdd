"""``tokenizer.model`` -> ``tokenizer.json``: the same ids from Hugging Face's tokenizers, in the browser too.

Exact for SentencePiece BPE as Llama 1 and 2 use it, with one difference that the format brings along: a
special token's name in a person's text, such as ``<s>``, becomes the token itself, where SentencePiece
spells it out as text. Set ``encode_special_tokens`` on the loaded tokenizer to have it spelled out too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from llama_export.errors import CheckpointError

# The module makes its classes when it is imported, so their attributes are unknown to a type checker.
proto: Any = sentencepiece_model_pb2

SPACE = "▁"
_REMEDY = "give the checkpoint the tokenizer.json of its author, or leave tokenizer.json out"


def write_tokenizer_json(model: Path, output: Path) -> None:
    """Convert a SentencePiece BPE model.

    Args:
        model: ``tokenizer.model``, with byte fallback and no normalisation.
        output: ``tokenizer.json``; replaced if it is there.

    Raises:
        CheckpointError: The file is no SentencePiece model, or one whose ids could not be kept exactly.
    """
    content = tokenizer_json(read_model(model))
    text = json.dumps(content, ensure_ascii=False, indent=2)
    output.write_text(text + "\n", encoding="utf-8")


def tokenizer_json(model: Any) -> dict[str, Any]:
    """Say in ``tokenizer.json``'s terms what a SentencePiece BPE model, a ``ModelProto``, does."""
    names = [piece.piece for piece in model.pieces]
    trainer = model.trainer_spec
    unk, bos = names[trainer.unk_id], names[trainer.bos_id]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _special_token(index, piece.piece)
            for index, piece in enumerate(model.pieces)
            if piece.type in (piece.UNKNOWN, piece.CONTROL)
        ],
        "normalizer": _normalizer(model.normalizer_spec.add_dummy_prefix),
        "pre_tokenizer": None,
        "post_processor": _post_processor(bos, trainer.bos_id),
        "decoder": _decoder(model.normalizer_spec.add_dummy_prefix),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {name: index for index, name in enumerate(names)},
            "merges": [list(pair) for pair in merges(model)],
        },
    }


def merges(model: Any) -> list[tuple[str, str]]:
    """List every pair of pieces that joins to a piece, the most eagerly joined first.

    SentencePiece joins the neighbours whose joint piece has the highest score; tokenizers joins those whose
    pair stands first in this list. Pairs that join to one piece are equal to the former; here the left
    side with the lower id comes first, as in the files that Hugging Face's own converter writes.
    """
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == piece.NORMAL}
    rank = {name: index for index, name in enumerate(scores)}
    pairs = [pair for name in scores for pair in _splits(name, scores)]
    pairs.sort(key=lambda pair: (-scores[pair[0] + pair[1]], rank[pair[0]], rank[pair[1]]))
    return pairs


def _splits(name: str, scores: dict[str, float]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(name)):
        left, right = name[:cut], name[cut:]
        if left in scores and right in scores:
            yield left, right


def read_model(path: Path) -> Any:
    """Parse the file and refuse what ``tokenizer.json`` would do differently."""
    model = proto.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except DecodeError as error:
        raise CheckpointError(f"{path}: is not a SentencePiece model", "download it again") from error
    if not model.pieces:
        raise CheckpointError(f"{path}: is not a SentencePiece model, it has no pieces", "download it again")
    for broken, what in _differences(model):
        if broken:
            raise CheckpointError(f"{path}: {what}; tokenizer.json cannot say this exactly", _REMEDY)
    return model


def _differences(model: Any) -> list[tuple[bool, str]]:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    types = {piece.type for piece in model.pieces}
    Piece = proto.ModelProto.SentencePiece
    size = len(model.pieces)
    return [
        (trainer.model_type != trainer.BPE, "is not a BPE model"),
        (not trainer.byte_fallback, "has no byte fallback"),
        (trainer.treat_whitespace_as_suffix, "puts the space behind a word"),
        (bool(normalizer.precompiled_charsmap), "normalises characters"),
        (normalizer.remove_extra_whitespaces, "removes spaces"),
        (not normalizer.escape_whitespaces, "does not escape spaces"),
        (Piece.USER_DEFINED in types, "has user-defined pieces"),
        (Piece.UNUSED in types, "has pieces marked as unused"),
        (not 0 <= trainer.bos_id < size or not 0 <= trainer.unk_id < size, "has no <s> or no <unk>"),
    ]


def _special_token(index: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **flags}


def _normalizer(add_dummy_prefix: bool) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if not add_dummy_prefix:
        return replace
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]}


def _decoder(add_dummy_prefix: bool) -> dict[str, Any]:
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": decoders}


def _post_processor(bos: str, bos_id: int) -> dict[str, Any]:
    def special(type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": bos, "type_id": type_id}}

    def sequence(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    return {
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
