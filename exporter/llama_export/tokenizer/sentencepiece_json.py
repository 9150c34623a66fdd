"""``tokenizer.model`` -> ``tokenizer.json``: the same ids from Hugging Face's tokenizers, in the browser too.

Exact for SentencePiece BPE as Llama 1 and 2 use it, with one difference that the format brings along: a
special token's name in a person's text, such as ``<s>``, becomes the token itself, where SentencePiece
spells it out as text. Set ``encode_special_tokens`` on the loaded tokenizer to have it spelled out too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, shown
from llama_export.errors import CheckpointError
from llama_export.tokenizer.added_tokens import added_token

# The module makes its classes when it is imported, so their attributes are unknown to a type checker.
proto: Any = sentencepiece_model_pb2
Piece: Any = proto.ModelProto.SentencePiece

SPACE = "▁"
_REMEDY = "give the checkpoint the tokenizer.json of its author, or leave tokenizer.json out"


def special_pieces(model: Any) -> list[dict[str, Any]]:
    """The pieces that stand for no text, and those that are found before all others, as added tokens."""
    kinds = (Piece.UNKNOWN, Piece.CONTROL, Piece.USER_DEFINED)
    return [
        added_token(index, piece.piece, special=piece.type != Piece.USER_DEFINED)
        for index, piece in enumerate(model.pieces)
        if piece.type in kinds
    ]


def sentencepiece_parts(model: Any) -> dict[str, Any]:
    """Say in ``tokenizer.json``'s terms what a SentencePiece BPE model, a ``ModelProto``, does."""
    names = [piece.piece for piece in model.pieces]
    add_dummy_prefix = model.normalizer_spec.add_dummy_prefix
    return {
        "normalizer": _normalizer(add_dummy_prefix),
        "pre_tokenizer": None,
        "decoder": _decoder(add_dummy_prefix),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": names[model.trainer_spec.unk_id],
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


def parse_model(data: bytes, name: str) -> Any:
    """Parse the file, a ``ModelProto``.

    Raises:
        CheckpointError: It is no SentencePiece model, or one whose ids cannot be.
    """
    model = proto.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        found = "is neither a SentencePiece model nor lines of ranks"
        raise CheckpointError(f"{name}: {found}", DOWNLOAD_AGAIN) from error
    if not model.pieces:
        raise CheckpointError(f"{name}: is not a SentencePiece model, it has no pieces", DOWNLOAD_AGAIN)
    if not model.HasField("trainer_spec") or not model.HasField("normalizer_spec"):
        raise CheckpointError(
            f"{name}: is cut short, its settings behind the pieces are missing", DOWNLOAD_AGAIN
        )
    id_of: dict[str, int] = {}
    for index, piece in enumerate(model.pieces):
        if not isinstance(piece.piece, str):  # protobuf hands over as bytes what is not UTF-8
            raise CheckpointError(f"{name}: piece {index} is {piece.piece!a}, not UTF-8", DOWNLOAD_AGAIN)
        if id_of.setdefault(piece.piece, index) != index:
            both = f"{id_of[piece.piece]} and {index}"
            raise CheckpointError(f"{name}: pieces {both} are both {shown(piece.piece)}", DOWNLOAD_AGAIN)
    return model


def check_exact(model: Any, name: str) -> None:
    """Refuse what ``tokenizer.json`` would do differently.

    Raises:
        CheckpointError: With what it is.
    """
    for broken, what in _differences(model):
        if broken:
            raise CheckpointError(f"{name}: {what}; tokenizer.json cannot say this exactly", _REMEDY)


def _differences(model: Any) -> list[tuple[bool, str]]:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    types = {piece.type for piece in model.pieces}
    # Between two of them a text begins anew, which would bring a space where one is put in front of texts.
    spaced = normalizer.add_dummy_prefix or any(
        SPACE in piece.piece or any(map(str.isspace, piece.piece))
        for piece in model.pieces
        if piece.type == Piece.USER_DEFINED
    )
    size = len(model.pieces)
    return [
        (trainer.model_type != trainer.BPE, "is not a BPE model"),
        (not trainer.byte_fallback, "has no byte fallback"),
        (trainer.treat_whitespace_as_suffix, "puts the space behind a word"),
        (bool(normalizer.precompiled_charsmap), "normalises characters"),
        (normalizer.remove_extra_whitespaces, "removes spaces"),
        (not normalizer.escape_whitespaces, "does not escape spaces"),
        (Piece.USER_DEFINED in types and spaced, "has user-defined pieces beside spaces"),
        (Piece.UNUSED in types, "has pieces marked as unused"),
        (not 0 <= trainer.bos_id < size or not 0 <= trainer.unk_id < size, "has no <s> or no <unk>"),
    ]


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
