"""The source tokenizer as its own library reads it: what a bundle's tokenizer is compared with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_export.errors import MissingExtraError
from llama_export.tokenizer.rank_file import SPLIT


@dataclass(frozen=True)
class Reference:
    """A tokenizer of somebody else's.

    Attributes:
        library: Whose it is.
        encode: A text to ids without BOS and EOS; the second argument says whether the names of special
            tokens in it are those tokens.
        decode: Ids of which none is special to the text they stand for.
    """

    library: str
    encode: Callable[[str, bool], list[int]]
    decode: Callable[[list[int]], str]


def sentencepiece_reference(model: Any, added: Sequence[dict[str, Any]]) -> Reference:
    """A ``ModelProto`` as sentencepiece reads it, between the added tokens."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def decode(ids: list[int]) -> str:
        return str(processor.decode(ids))

    return Reference("sentencepiece", _between(added, lambda text: list(processor.encode(text))), decode)


def rank_reference(ranks: dict[bytes, int], added: Sequence[dict[str, Any]]) -> Reference:
    """Meta's ranks as tiktoken reads them.

    Raises:
        MissingExtraError: tiktoken is not installed.
    """
    try:
        import tiktoken
    except ImportError:
        raise MissingExtraError(
            "comparing with Meta's tokenizer.model needs tiktoken", "pip install 'llama-export[export]'"
        ) from None
    encoding = tiktoken.Encoding("llama3", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
    return Reference("tiktoken", _between(added, encoding.encode_ordinary), encoding.decode)


def json_reference(document: str, added: Sequence[dict[str, Any]]) -> Reference:
    """A ``tokenizer.json`` as tokenizers reads it; what other files name is put in by the library."""
    import tokenizers

    library = tokenizers.Tokenizer.from_str(document)
    library.no_truncation()
    library.no_padding()
    for entry in added:
        flags = {key: value for key, value in entry.items() if key not in ("id", "content")}
        put = library.add_special_tokens if entry["special"] else library.add_tokens
        put([tokenizers.AddedToken(entry["content"], **flags)])  # those that it has stay as they are

    def encode(text: str, parse_special: bool) -> list[int]:
        library.encode_special_tokens = not parse_special
        return list(library.encode(text, add_special_tokens=False).ids)

    return Reference("tokenizers", encode, lambda ids: str(library.decode(ids, skip_special_tokens=False)))


def _between(
    added: Sequence[dict[str, Any]], encode_text: Callable[[str], list[int]]
) -> Callable[[str, bool], list[int]]:
    """Find added tokens as they are written, the longest first, and encode what is between them."""
    ids = {entry["content"]: entry["id"] for entry in added}
    patterns = {
        parse: re.compile(
            "|".join(
                _pattern(entry)
                for entry in sorted(added, key=lambda entry: -len(entry["content"]))
                if parse or not entry["special"]
            )
            or "(?!)"
        )
        for parse in (True, False)
    }

    def encode(text: str, parse_special: bool) -> list[int]:
        found: list[int] = []
        end = 0
        for match in patterns[parse_special].finditer(text):
            token = ids.get(match[0], ids.get(match[0].strip()))
            assert token is not None, "a match is a name, and spaces that the name may take along"
            found += [*encode_text(text[end : match.start()]), token]
            end = match.end()
        return found + encode_text(text[end:])

    return encode


def _pattern(entry: dict[str, Any]) -> str:
    name = re.escape(entry["content"])
    name = rf"(?<!\w){name}(?!\w)" if entry["single_word"] else name
    return (r"\s*" if entry["lstrip"] else "") + name + (r"\s*" if entry["rstrip"] else "")
