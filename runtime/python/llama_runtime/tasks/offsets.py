"""Where in its text each token stands, in characters."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from llama_runtime.errors import TokenizerError
from llama_runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """A text as tokens that know where they stand.

    Attributes:
        tokens: All of them, BOS and EOS included.
        spans: First character and the one behind the last, for each token; of a special token (0, 0).
            A token that is a part of a character has the whole of it.
        first: The first token that is text.
        end: Behind the last one.
    """

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    first: int
    end: int


def encode_with_offsets(tokenizer: Tokenizer, text: str) -> Encoded:
    """Encode a text and find each token's characters, by the bytes that the tokens stand for.

    Raises:
        TokenizerError: The tokens do not add up to the text, because the vocabulary normalises it.
        PromptError: The text is not valid UTF-8.
    """
    tokens = tokenizer.encode(text, add_special=False)
    vocabulary = tokenizer.vocabulary
    pieces = [
        vocabulary.token_bytes(token) if index else vocabulary.first_token_bytes(token)
        for index, token in enumerate(tokens)
    ]
    if b"".join(pieces) != text.encode():
        raise TokenizerError(
            "the tokens of the text do not add up to it, so its words cannot be found in it",
            "the vocabulary changes texts (Unicode normalisation, say); normalise them first",
        )
    starts = [0]  # byte at which each character starts, and the end of the text
    for character in text:
        starts.append(starts[-1] + len(character.encode()))
    spans, done = [], 0
    for piece in pieces:
        begin = bisect_right(starts, done) - 1
        done += len(piece)
        end = bisect_right(starts, done - 1) if piece else begin
        spans.append((begin, end))
    whole = tokenizer.build_inputs_with_special_tokens(tokens)
    first = int(tokenizer.add_bos)
    behind = len(whole) - len(tokens) - first
    return Encoded(
        tokens=tuple(whole),
        spans=((0, 0),) * first + tuple(spans) + ((0, 0),) * behind,
        first=first,
        end=first + len(tokens),
    )


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out the whitespace on both sides of a span."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
