"""Text to token ids and back, by one rule whichever library reads the vocabulary.

BOS and EOS are added as the manifest says, never by the library, and text is text: a special
token's name inside it is encoded like any other characters, unless it is asked to be parsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile

from llama_runtime.errors import PromptError, TokenizerError
from llama_runtime.manifest import TokenizerFile, Tokens
from llama_runtime.vocabulary import Vocabulary, open_sentencepiece, open_tokenizers

# Decoding with errors="surrogateescape" leaves one of these for each invalid byte.
ESCAPED_BYTES = dict.fromkeys(range(0xDC80, 0xDD00), "\ufffd")


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and the manifest's rule about BOS and EOS.

    What it says about special tokens in sequences and pairs is what transformers' LlamaTokenizer says.

    Attributes:
        vocabulary: The opened file.
        path: Where that file is.
        bos_token_id: Opens a sequence; None where the model has no such token.
        eos_token_id: Ends a sequence.
        add_bos: Whether BOS is put in front of every sequence.
        add_eos: Whether EOS is put behind every sequence.
    """

    vocabulary: Vocabulary
    path: Path
    bos_token_id: int | None
    eos_token_id: int | None
    add_bos: bool = False
    add_eos: bool = False

    def __post_init__(self) -> None:
        ids = {"bos": (self.add_bos, self.bos_token_id), "eos": (self.add_eos, self.eos_token_id)}
        for name, (wanted, token) in ids.items():
            if wanted and token is None:
                raise TokenizerError(f"{self.path}: add_{name} is true, the manifest has no id for it")

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
        return self.build_inputs_with_special_tokens(ids) if add_special else ids

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

    def build_inputs_with_special_tokens(
        self, ids: Sequence[int], pair: Sequence[int] | None = None
    ) -> list[int]:
        """Put BOS and EOS around a sequence and around the one that is paired with it.

        Args:
            ids: Without special tokens.
            pair: The second sequence; None where there is none, which is not the same as an empty one.
        """
        bos = [self.bos_token_id] if self.add_bos and self.bos_token_id is not None else []
        eos = [self.eos_token_id] if self.add_eos and self.eos_token_id is not None else []
        return [token for part in _parts(ids, pair) for token in (*bos, *part, *eos)]

    def create_token_type_ids_from_sequences(
        self, ids: Sequence[int], pair: Sequence[int] | None = None
    ) -> list[int]:
        """Number the sequences: 0 for each token of the first, 1 for the second's, BOS and EOS included."""
        special = self.add_bos + self.add_eos
        return [kind for kind, part in enumerate(_parts(ids, pair)) for _ in range(len(part) + special)]

    def get_special_tokens_mask(
        self,
        ids: Sequence[int],
        pair: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Mark special tokens by 1 and others by 0.

        Args:
            ids: Without special tokens, and the mask is that of the sequence with them.
            pair: The second sequence, if any.
            already_has_special_tokens: The mask of `ids` as they are; a pair is one sequence then.

        Raises:
            PromptError: There is a pair that is said to have its special tokens already.
        """
        if already_has_special_tokens and pair is not None:
            raise PromptError(
                "a pair is given, and said to have its special tokens already",
                "give both as one sequence of ids",
            )
        if already_has_special_tokens:
            return [int(token in self.vocabulary.special_ids) for token in ids]
        bos, eos = [1] * self.add_bos, [1] * self.add_eos
        return [mark for part in _parts(ids, pair) for mark in (*bos, *[0] * len(part), *eos)]

    def update_post_processor(self, *, add_bos: bool, add_eos: bool) -> Tokenizer:
        """Return a tokenizer over the same vocabulary that puts BOS and EOS around texts as said.

        Raises:
            TokenizerError: The model has no such token.
        """
        return replace(self, add_bos=add_bos, add_eos=add_eos)

    def save_vocabulary(self, folder: str | Path, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the vocabulary's file; onto itself, nothing is done.

        Args:
            folder: Where to; it must be there.
            filename_prefix: Stands in front of the file's name, with a hyphen between.

        Returns:
            The path of the copy.

        Raises:
            TokenizerError: There is no such folder, or it cannot be written.
        """
        target = Path(folder) / "-".join(filter(None, (filename_prefix, self.path.name)))
        if not target.parent.is_dir():
            raise TokenizerError(f"{folder}: no such folder", "make it first, or name another")
        try:
            if not target.exists() or not target.samefile(self.path):
                copyfile(self.path, target)
        except OSError as error:
            raise TokenizerError(f"{target}: cannot be written ({error.strerror})") from None
        return (str(target),)


def _parts(ids: Sequence[int], pair: Sequence[int] | None) -> list[Sequence[int]]:
    return [ids] if pair is None else [ids, pair]


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
    vocabulary = open_sentencepiece(path) if file.kind == "sentencepiece" else open_tokenizers(path)
    eos = tokens.eos_token_ids[0] if tokens.eos_token_ids else None
    return Tokenizer(vocabulary, path, tokens.bos_token_id, eos, file.add_bos, file.add_eos)
