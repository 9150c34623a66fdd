"""The two vocabulary files of the LLaMA family, each opened with the library that defines it.

- sentencepiece's `tokenizer.model`: pieces with U+2581 for a space, and byte pieces `<0x0A>`.
- tokenizers' `tokenizer.json`: the same pieces, or byte-level ones (Llama 3), where each
  character of a token stands for one byte.

What we take from the libraries is encoding and the table of tokens; decoding is ours, one
token at a time, because neither library streams exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from llama_runtime.errors import TokenizerError

SPACE = "\u2581"
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
PIECE_DECODERS = ["Replace", "ByteFallback", "Fuse", "Strip"]
COPY_AGAIN = "copy the file again from the checkpoint, or export again"


@dataclass(frozen=True)
class Vocabulary:
    """What a vocabulary file says, whichever library opened it.

    Attributes:
        encode: Text to ids, without BOS and EOS. Its second argument says whether the name of a
            special token in the text is that token; then the text on either side of it is encoded
            as a text of its own.
        encode_inside: Text that continues another to ids: no space is put in front of it.
        token_bytes: An id to the UTF-8 bytes it stands for, which need not be whole characters;
            empty for an id that the file does not have (a model may have more rows than that).
        first_token_bytes: The same for the token that opens a text: where the encoder puts a
            space in front of every text, decoding takes it away.
        special_ids: Ids that stand for no text (BOS, EOS, unknown, ...).
        added_tokens: Name to id of the special tokens, and of those that the file finds in any text
            before it encodes the rest.
        restarts_after_special: Text behind a special token is encoded like one of its own, space in
            front and all, not like a continuation.
        replaces_each_byte: An invalid sequence gives one U+FFFD for each byte (sentencepiece), not
            one for all the bytes that could have begun a character (byte-level vocabularies).
    """

    encode: Callable[[str, bool], list[int]]
    encode_inside: Callable[[str], list[int]]
    token_bytes: Callable[[int], bytes]
    first_token_bytes: Callable[[int], bytes]
    special_ids: frozenset[int]
    added_tokens: Mapping[str, int]
    restarts_after_special: bool
    replaces_each_byte: bool


def open_sentencepiece(path: Path) -> Vocabulary:
    """Open a sentencepiece model.

    Raises:
        TokenizerError: The file is missing or corrupt.
    """
    import sentencepiece

    model = _read(path)
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as error:  # The binding raises plain RuntimeErrors, and others for bad protobufs.
        raise TokenizerError(f"{path}: not a sentencepiece model ({error})", COPY_AGAIN) from None
    size = processor.vocab_size()
    if size < 1:
        raise TokenizerError(f"{path}: a sentencepiece model without pieces", COPY_AGAIN)
    kinds = (processor.is_control, processor.is_unknown)
    special_ids = frozenset(token for token in range(size) if any(kind(token) for kind in kinds))
    ids_of = {str(processor.id_to_piece(token)): token for token in special_ids}
    # Of names that begin alike, the longest.
    name = re.compile("|".join(map(re.escape, sorted(ids_of, key=len, reverse=True))) or "(?!)")

    def encode(text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        end = 0
        for match in name.finditer(text) if parse_special else ():
            ids += [*processor.encode(text[end : match.start()]), ids_of[match[0]]]
            end = match.end()
        return ids + list(processor.encode(text[end:]))

    @cache
    def token_bytes(token: int) -> bytes:
        if not 0 <= token < size:
            return b""
        piece = processor.id_to_piece(token)
        if processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace(SPACE, " ").encode()

    # Whether a text gets a space in front is not in the binding's interface, so ask it.
    drops_space = not str(processor.decode(_word_piece(processor, size))).startswith(" ")

    def first_token_bytes(token: int) -> bytes:
        opens_word = 0 <= token < size and processor.id_to_piece(token).startswith(SPACE)
        return token_bytes(token).removeprefix(b" " if drops_space and opens_word else b"")

    return Vocabulary(
        encode=encode,
        encode_inside=_inside(encode),
        token_bytes=token_bytes,
        first_token_bytes=first_token_bytes,
        special_ids=special_ids,
        added_tokens=ids_of,
        restarts_after_special=True,
        replaces_each_byte=True,
    )


def open_tokenizers(path: Path) -> Vocabulary:
    """Open a tokenizer.json.

    Raises:
        TokenizerError: The file is missing, corrupt, or decodes in a way the LLaMA family does not.
    """
    import tokenizers

    try:
        library = tokenizers.Tokenizer.from_buffer(_read(path))
    except Exception as error:  # The binding raises plain Exceptions.
        raise TokenizerError(f"{path}: not a tokenizer.json ({error})", COPY_AGAIN) from None
    library.no_padding()
    library.no_truncation()
    added = library.get_added_tokens_decoder()
    special_ids = frozenset(token for token, content in added.items() if content.special)
    steps = _decoder_steps(library.decoder)
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        token_to_bytes, drops_space = _byte_level_bytes, False
    elif names == PIECE_DECODERS or names == PIECE_DECODERS[:-1]:
        token_to_bytes, drops_space = _piece_bytes, names[-1] == "Strip" and steps[-1]["start"] == 1
    else:
        raise TokenizerError(
            f"{path}: decoder is {' + '.join(names) or 'missing'}, "
            f"needs ByteLevel or {' + '.join(PIECE_DECODERS)}"
        )

    @cache
    def token_bytes(token: int) -> bytes:
        name = library.id_to_token(token) if token >= 0 else None
        return b"" if name is None else token_to_bytes(name)

    def first_token_bytes(token: int) -> bytes:
        opens_word = drops_space and (library.id_to_token(token) or "").startswith(SPACE)
        return token_bytes(token).removeprefix(b" " if opens_word else b"")

    lock = Lock()

    def encode(text: str, parse_special: bool) -> list[int]:
        with lock:  # The library keeps this choice as a setting, not as an argument.
            library.encode_special_tokens = not parse_special
            return list(library.encode(text, add_special_tokens=False).ids)

    return Vocabulary(
        encode=encode,
        encode_inside=_inside(encode),
        token_bytes=token_bytes,
        first_token_bytes=first_token_bytes,
        special_ids=special_ids,
        added_tokens={content.content: token for token, content in added.items()},
        restarts_after_special=_restarts_after_special(encode, added, special_ids),
        replaces_each_byte=token_to_bytes is _piece_bytes,
    )


def _read(path: Path) -> bytes:
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read ({error.strerror})", COPY_AGAIN) from None
    if not contents:
        raise TokenizerError(f"{path}: empty", COPY_AGAIN)
    return contents


def _inside(encode: Callable[[str, bool], list[int]]) -> Callable[[str], list[int]]:
    # NUL joins with nothing, so what stands behind it is encoded as in the middle of a text.
    opening = encode("\0", False)

    def encode_inside(text: str) -> list[int]:
        ids = encode("\0" + text, False)
        return ids[len(opening) :] if ids[: len(opening)] == opening else encode(text, False)

    if encode_inside("a") == encode("a", False):  # No space is put in front of any text.
        return lambda text: encode(text, False)
    return encode_inside


def _restarts_after_special(
    encode: Callable[[str, bool], list[int]], added: Mapping[int, Any], special_ids: frozenset[int]
) -> bool:
    specials = sorted(special_ids)[:1]
    return all(encode(added[token].content + "a", True) == [token, *encode("a", False)] for token in specials)


def _word_piece(processor: Any, size: int) -> list[int]:
    pieces = ((token, processor.id_to_piece(token)) for token in range(size))
    return next(([token] for token, piece in pieces if piece.rfind(SPACE) == 0 and piece != SPACE), [])


def _decoder_steps(decoder: Any) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    return [dict(step) for step in steps]


def _piece_bytes(name: str) -> bytes:
    match = BYTE_TOKEN.fullmatch(name)
    return bytes([int(match[1], 16)]) if match else name.replace(SPACE, " ").encode()


def _byte_level_bytes(name: str) -> bytes:
    table = byte_of_character()
    if all(character in table for character in name):
        return bytes(table[character] for character in name)
    return name.encode()  # An added token, which is written as it is.


@cache
def byte_of_character() -> dict[str, int]:
    """Byte-level vocabularies: each of their 256 characters, and the byte that it stands for."""
    # GPT-2's table: printable Latin-1 stands for itself, the other bytes for U+0100 onwards.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
