"""A ``tokenizer.json`` as the checkpoint's author gave it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, read_json_object
from llama_export.errors import CheckpointError
from llama_export.tokenizer.accepted_json import NAME, check_document
from llama_export.tokenizer.reference import Reference, json_reference
from llama_export.tokenizer.special import Token
from llama_runtime.errors import TokenizerError
from llama_runtime.vocabulary import open_tokenizers

_PROBE = "a"


@dataclass(frozen=True)
class AuthorJson:
    """An accepted ``tokenizer.json``.

    Attributes:
        path: The file.
        document: What it says.
        enclosed: The ids that it puts in front of a text and behind it.
        enclosed_pair: The ids that it puts in front of a pair, between the two, and behind.
    """

    path: Path
    document: dict[str, Any]
    enclosed: tuple[list[int], list[int]]
    enclosed_pair: tuple[list[int], list[int], list[int]]

    @property
    def vocab(self) -> dict[str, int]:
        """Piece to id, added tokens apart."""
        return dict(self.document["model"]["vocab"])

    @property
    def added_tokens(self) -> list[dict[str, Any]]:
        """Its own list of added tokens."""
        return list(self.document.get("added_tokens") or [])

    def encloses(self, in_front: Token | None, behind: Token | None) -> bool:
        """Whether it puts exactly these tokens around each text and each text of a pair."""
        front, back = ([token[1]] if token else [] for token in (in_front, behind))
        return self.enclosed == (front, back) and self.enclosed_pair == (front, [*back, *front], back)

    def reference(self, added: Sequence[dict[str, Any]]) -> Reference:
        """The file as tokenizers reads it, with the added tokens given."""
        return json_reference(json.dumps(self.document), added)


def read_author(path: Path) -> AuthorJson:
    """Read a ``tokenizer.json``.

    Raises:
        CheckpointError: It is damaged, or asks for what no tokenizer of the LLaMA family does.
    """
    document = read_json_object(path, NAME)
    check_document(document)
    try:
        open_tokenizers(path)
    except TokenizerError as error:
        raise CheckpointError(error.message, DOWNLOAD_AGAIN) from None
    library = tokenizers.Tokenizer.from_file(str(path))
    library.no_truncation()
    library.no_padding()
    plain = library.encode(_PROBE, add_special_tokens=False).ids
    single, pair = library.encode(_PROBE).ids, library.encode(_PROBE, _PROBE).ids
    front = _find(single, plain, 0)
    first, second = _find(pair, plain, 0), _find(pair, plain, _find(pair, plain, 0) + len(plain))
    return AuthorJson(
        path,
        document,
        (single[:front], single[front + len(plain) :]),
        (pair[:first], pair[first + len(plain) : second], pair[second + len(plain) :]),
    )


def _find(ids: list[int], part: list[int], start: int) -> int:
    places = (place for place in range(start, len(ids)) if ids[place : place + len(part)] == part)
    place = next(places, None)
    if place is None:
        found = "post_processor changes the tokens of a text"
        raise CheckpointError(f"{NAME}: {found}, may only put tokens around them", DOWNLOAD_AGAIN)
    return place
