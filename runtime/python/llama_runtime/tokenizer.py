"""Text to token ids and back, by one rule whichever library reads the vocabulary.

BOS and EOS are added as the manifest says, never by the library, and text is text: a special
token's name inside it is encoded like any other characters, unless it is asked to be parsed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llama_runtime.errors import PromptError, TokenizerError
from llama_runtime.manifest import TokenizerFile, Tokens
from llama_runtime.vocabulary import Vocabulary, open_sentencepiece, open_tokenizers

# Decoding with errors="surrogateescape" leaves one of these for each invalid byte.
ESCAPED_BYTES = dict.fromkeys(range(0xDC80, 0xDD00), "\ufffd")


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and the manifest's rule about BOS and EOS.

    Attributes:
        vocabulary: The opened file.
        prefix: Ids that `encode` puts in front.
        suffix: Ids that `encode` puts behind.
    """

    vocabulary: Vocabulary
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def encode(self, text: str, add_special: bool = True, *, parse_special: bool = False) -> list[int]:
        """Turn text into ids.

        Args:
            text: Any text.
            add_special: Add BOS and EOS where the manifest says that the model wants them.
            parse_special: The name of a special token in the text is that token, as in a rendered chat
                template. Never for what a user typed: who may write ``<|eot_id|>`` may write for others.

        Raises:
            PromptError: The text has characters that UTF-8 cannot hold (a lone surrogate).
        """
        check_text(text)
        ids = self.vocabulary.encode(text, parse_special)
        return [*self.prefix, *ids, *self.suffix] if add_special else ids

    def encode_parts(self, parts: Iterable[str | int]) -> list[int]:
        """Turn texts with special tokens between them into ids; nothing is added, and texts stay text.

        Args:
            parts: Texts, and the ids that stand between them, in order. Two texts that follow each
                other are one text, and no token crosses the border.

        Raises:
            PromptError: A text has characters that UTF-8 cannot hold.
        """
        ids: list[int] = []
        inside = False
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
                inside = not self.vocabulary.restarts_after_special
            elif part:
                check_text(part)
                ids += self.vocabulary.encode_inside(part) if inside else self.vocabulary.encode(part, False)
                inside = True
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Turn ids into text; invalid UTF-8 becomes U+FFFD.

        Args:
            ids: The tokens, as the model gave them.
            skip_special: Leave special tokens out, before anything else; else show their names.
        """
        kept = [token for token in ids if not (skip_special and token in self.vocabulary.special_ids)]
        if not kept:
            return ""
        pieces = [self.vocabulary.first_token_bytes(kept[0])]
        pieces += [self.vocabulary.token_bytes(token) for token in kept[1:]]
        return b"".join(pieces).decode("utf-8", self.invalid_bytes).translate(ESCAPED_BYTES)

    @property
    def invalid_bytes(self) -> str:
        """The ``errors`` argument that decodes this vocabulary's bytes; translate by ESCAPED_BYTES after."""
        return "surrogateescape" if self.vocabulary.replaces_each_byte else "replace"


def check_text(text: str) -> None:
    """Raise PromptError if the text has characters that UTF-8 cannot hold (a lone surrogate)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the text is not valid UTF-8: character {error.start} is {text[error.start]!a}",
            "check the encoding of the file or terminal that the text comes from",
        ) from None


def open_tokenizer(folder: Path, file: TokenizerFile, tokens: Tokens) -> Tokenizer:
    """Open the bundle's vocabulary.

    Args:
        folder: The bundle.
        file: The manifest's ``tokenizer``.
        tokens: The manifest's ``tokens``: which ids BOS and EOS are.

    Raises:
        TokenizerError: The file is missing or corrupt, or a token it should add has no id.
    """
    path = folder / file.path
    bos = [] if tokens.bos_token_id is None else [tokens.bos_token_id]
    eos = tokens.eos_token_ids[:1]
    for name, wanted, ids in (("bos", file.add_bos, bos), ("eos", file.add_eos, eos)):
        if wanted and not ids:
            raise TokenizerError(f"{path}: add_{name} is true, the manifest has no id for it")
    vocabulary = open_sentencepiece(path) if file.kind == "sentencepiece" else open_tokenizers(path)
    return Tokenizer(vocabulary, tuple(bos) if file.add_bos else (), tuple(eos) if file.add_eos else ())
