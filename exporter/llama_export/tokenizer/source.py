"""The tokenizer of a checkpoint, whichever files it came in: one account of it, or a refusal.

- ``tokenizer.model``, SentencePiece's (Llama 1 and 2) or Meta's ranks (Llama 3), decides where it is there.
- An author's ``tokenizer.json`` beside it is kept where it gives the same ids, for it may say more, such as
  how text behind a special token begins. Where its ids differ it is made anew, and that is said; where its
  vocabulary is another one it is refused, since one of the two files belongs to another model.
- Without ``tokenizer.model``, ``tokenizer.json`` decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from llama_export.checkpoint import Checkpoint
from llama_export.checkpoint.json_file import shown
from llama_export.errors import CheckpointError
from llama_export.tokenizer.added_tokens import CONFIG, SPECIAL, collect, read_settings
from llama_export.tokenizer.author_json import AuthorJson, read_author
from llama_export.tokenizer.awkward_texts import AWKWARD_TEXTS, vocabulary_texts
from llama_export.tokenizer.document import assemble, post_processor
from llama_export.tokenizer.model_file import ModelFile, read_model
from llama_export.tokenizer.rank_file import SPECIAL_TOKENS
from llama_export.tokenizer.reference import Reference
from llama_export.tokenizer.special import Special, resolve_special

MODEL, JSON = "tokenizer.model", "tokenizer.json"
_OTHER_MODEL = "the tokenizer belongs to another model, or is damaged; download it again"


@dataclass(frozen=True)
class SourceTokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        vocab: Piece to id, added tokens apart.
        model: ``tokenizer.model``; None where there is none.
        author: ``tokenizer.json`` as the author gave it, where it is kept.
        added_tokens: Every added token that any of the files names.
        special: BOS and EOS.
        settings: ``tokenizer_config.json`` over ``special_tokens_map.json``.
        runs_model: ``tokenizer.model`` alone gives the ids of every text, as SentencePiece reads it.
        notes: What a person should know, in sentences.
    """

    vocab: dict[str, int]
    model: ModelFile | None
    author: AuthorJson | None
    added_tokens: list[dict[str, Any]]
    special: Special
    settings: dict[str, Any]
    runs_model: bool
    notes: tuple[str, ...]

    @property
    def kind(self) -> Literal["sentencepiece", "tiktoken", "tokenizers"]:
        """Whose library defines the ids."""
        return self.model.kind if self.model else "tokenizers"

    @property
    def path(self) -> Path:
        """The file that defines the ids."""
        return self.model.path if self.model else self._author.path

    @property
    def _author(self) -> AuthorJson:
        assert self.author is not None, "a source has at least one of the two files"
        return self.author

    def token_name(self, token: int) -> str | None:
        """The name of an id, None where it has none."""
        added = (entry["content"] for entry in self.added_tokens if entry["id"] == token)
        return next(added, None) or next((name for name, index in self.vocab.items() if index == token), None)

    def texts(self) -> list[str]:
        """What the pieces of the vocabulary stand for, where that is text."""
        return self.model.texts if self.model else [name.replace("\u2581", " ") for name in self.vocab]

    def document(self) -> dict[str, Any]:
        """The bundle's ``tokenizer.json``; the author's own where nothing in it had to change."""
        template = post_processor(self.special.in_front, self.special.behind)
        if self.author is None:
            assert self.model is not None
            return assemble(self.model.parts(), self.added_tokens, template)
        if self.author.encloses(self.special.in_front, self.special.behind):
            template = self.author.document.get("post_processor")
        changes = {"added_tokens": self.added_tokens, "post_processor": template}
        return self.author.document | changes | {"truncation": None, "padding": None}

    def reference(self) -> Reference:
        """The tokenizer as its own library reads it."""
        return (self.model or self._author).reference(self.added_tokens)


def open_source(checkpoint: Checkpoint) -> SourceTokenizer | None:
    """Read a checkpoint's tokenizer files, and refuse what a bundle could not repeat exactly.

    The one opened last is kept: an export asks for it half a dozen times.

    Args:
        checkpoint: Its companions name the files, wherever they stand.

    Returns:
        None where the checkpoint has no tokenizer.

    Raises:
        CheckpointError: A file is damaged, two contradict each other, or one asks for what we do not do.
    """
    files = tuple((path, _content(path)) for path in checkpoint.companions)
    config = checkpoint.config
    first = tuple(_first_id(checkpoint, key) for key in ("bos_token_id", "eos_token_id"))
    return _open(files, config.vocab_size, config.rope.rope_type == "llama3", first)


@lru_cache(maxsize=1)
def _open(
    stored: tuple[tuple[Path, bytes], ...], rows: int, llama_3_1: bool, first: tuple[int | None, ...]
) -> SourceTokenizer | None:
    """Open the tokenizer of files with that content, for a model with so many rows and those BOS and EOS."""
    files = {path.name: path for path, _ in stored}
    settings = read_settings(files, SPECIAL) | read_settings(files, CONFIG)
    # transformers' LlamaTokenizer puts no space in front of a text where it is told not to.
    spaced = settings.get("add_prefix_space") is not False
    model = author = None
    if MODEL in files:
        model = read_model(files[MODEL], add_prefix_space=spaced, llama_3_1=llama_3_1)
    if JSON in files:
        author = read_author(files[JSON])
    if model is None and author is None:
        return None

    vocab = model.vocab if model else author.vocab if author else {}
    if model and author:
        _refuse_other_vocabulary(model, author)
    added = collect(
        files,
        vocab,
        MODEL if model else JSON,
        known=author.added_tokens if author else (),
        defaults=model.special if model else (),
    )
    named = author is not None or "added_tokens_decoder" in settings
    _refuse_other_size(vocab, rows, model, named=named)
    notes = _ids_beyond(added, rows)
    runs_model = model is not None and model.kind == "sentencepiece" and spaced
    if model:
        # sentencepiece knows no flags; whether names are sought in normalised text, the comparison shows.
        runs_model &= _written(added) == _written(model.special)
    if model and author:
        differing, alike = _compare(model, author, added)
        runs_model &= alike
        if differing:
            author, notes = None, [*notes, differing]
    if model and not author:
        model.check_exact()
    special = _special(first, settings, vocab, added, model, author)
    return SourceTokenizer(vocab, model, author, added, special, settings, runs_model, tuple(notes))


def _content(path: Path) -> bytes:
    """A digest of what a file holds; of nothing where it cannot be read, which whoever needs it will say."""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


def _first_id(checkpoint: Checkpoint, key: str) -> int | None:
    """A special token's id as the configuration has it; the first of several."""
    value = checkpoint.generation_config.get(key, checkpoint.raw_config.get(key))
    first = value[0] if isinstance(value, list) and value else value
    return first if type(first) is int else None


def _refuse_other_vocabulary(model: ModelFile, author: AuthorJson) -> None:
    """Every piece of ``tokenizer.model`` must have its id in ``tokenizer.json`` too."""
    theirs = author.vocab | {entry["content"]: entry["id"] for entry in author.added_tokens}
    for name, index in model.vocab.items():
        if theirs.get(name) != index:
            got = f"has it as {theirs[name]}" if name in theirs else "does not have it"
            raise CheckpointError(
                f"{MODEL}: {shown(name)} is token {index}, {JSON} {got}; one is of another model",
                "download the tokenizer again, or take the file away that does not belong",
            )


def _refuse_other_size(vocab: Mapping[str, int], rows: int, model: ModelFile | None, *, named: bool) -> None:
    """The vocabulary must fit the model's embedding; tokens added to it may lie beyond."""
    path = model.path if model else JSON
    size = max(vocab.values(), default=-1) + 1
    if size > rows:
        raise CheckpointError(f"{path}: has {size} tokens, the model knows {rows}", _OTHER_MODEL)
    if model and model.kind == "tiktoken" and not named and size + SPECIAL_TOKENS != rows:
        # Special tokens stand behind the last rank, so one rank less would make each of them another token.
        found = f"has {size} ranks, with {SPECIAL_TOKENS} special tokens {size + SPECIAL_TOKENS}"
        raise CheckpointError(f"{path}: {found}, the model knows {rows}", _OTHER_MODEL)


def _written(added: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry | {"normalized": False} for entry in added]


def _ids_beyond(added: list[dict[str, Any]], rows: int) -> list[str]:
    beyond = [entry["content"] for entry in added if entry["id"] >= rows]
    if not beyond:
        return []
    names = ", ".join(beyond[:3]) + (", ..." if len(beyond) > 3 else "")
    return [f"the tokenizer has tokens that the model does not know, so a prompt must not hold them: {names}"]


def _compare(model: ModelFile, author: AuthorJson, added: list[dict[str, Any]]) -> tuple[str, bool]:
    """Compare the two files on awkward texts and on every piece.

    Returns:
        What differs, empty where nothing does; and whether it is the same behind special tokens too.
    """
    ours, theirs = model.reference(added), author.reference(added)
    texts = [*AWKWARD_TEXTS, *vocabulary_texts(model.texts)]
    differing = [text for text in texts if ours.encode(text, False) != theirs.encode(text, False)]
    if not differing:
        alike = all(ours.encode(text, True) == theirs.encode(text, True) for text in AWKWARD_TEXTS)
        return "", alike
    return (
        f"{JSON} differs from {MODEL} in {len(differing)} of {len(texts)} texts, such as "
        f"{shown(differing[0])}; it was made anew from {MODEL}, which decides",
        True,
    )


def _special(
    first: tuple[int | None, ...],
    settings: Mapping[str, Any],
    vocab: Mapping[str, int],
    added: list[dict[str, Any]],
    model: ModelFile | None,
    author: AuthorJson | None,
) -> Special:
    id_of = dict(vocab) | {entry["content"]: entry["id"] for entry in added}
    name_of = {index: name for name, index in id_of.items()}

    bos, eos = (None if index is None else name_of.get(index) for index in first)
    defaults = {"bos_token": model.bos if model else bos, "eos_token": model.eos if model else eos}
    enclosed = None if model or author is None else author.enclosed
    return resolve_special(settings, id_of, defaults, enclosed)
