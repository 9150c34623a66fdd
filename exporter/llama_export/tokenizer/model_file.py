"""``tokenizer.model`` of either kind: SentencePiece's, or Meta's ranks for Llama 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN
from llama_export.errors import CheckpointError
from llama_export.tokenizer import rank_file
from llama_export.tokenizer.added_tokens import added_token
from llama_export.tokenizer.reference import Reference, rank_reference, sentencepiece_reference
from llama_export.tokenizer.sentencepiece_json import (
    check_exact,
    parse_model,
    sentencepiece_parts,
    special_pieces,
)
from llama_runtime.errors import TokenizerError
from llama_runtime.vocabulary import open_sentencepiece


@dataclass(frozen=True)
class ModelFile:
    """What a ``tokenizer.model`` says.

    Attributes:
        kind: Whose format it is.
        path: The file.
        vocab: Piece to id, as ``tokenizer.json`` has it.
        texts: The pieces as text.
        special: Its special tokens, as added tokens.
        bos: Name of the token that opens a text.
        eos: Name of the token that ends one.
        check_exact: Refuses what ``tokenizer.json`` would do differently.
        parts: ``tokenizer.json``'s normalizer, pre_tokenizer, decoder and model.
        reference: The file as its own library reads it, with the added tokens given.
    """

    kind: Literal["sentencepiece", "tiktoken"]
    path: Path
    vocab: dict[str, int]
    texts: list[str]
    special: list[dict[str, Any]]
    bos: str | None
    eos: str | None
    check_exact: Callable[[], None]
    parts: Callable[[], dict[str, Any]]
    reference: Callable[[Sequence[dict[str, Any]]], Reference]


def read_model(path: Path, *, add_prefix_space: bool, llama_3_1: bool) -> ModelFile:
    """Read a ``tokenizer.model``, whichever kind it is.

    Args:
        path: The file.
        add_prefix_space: False where no space is to be put in front of a text, whatever the file says.
        llama_3_1: Which names the special tokens behind ranks have.

    Raises:
        CheckpointError: It cannot be read, is empty, damaged, or neither kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})", DOWNLOAD_AGAIN) from error
    if not data.strip():
        found = "is empty, must be a SentencePiece model or lines of ranks"
        raise CheckpointError(f"{path}: {found}", DOWNLOAD_AGAIN)
    if rank_file.is_rank_file(data):
        return _ranks(path, data, llama_3_1)
    return _sentencepiece(path, data, add_prefix_space)


def _sentencepiece(path: Path, data: bytes, add_prefix_space: bool) -> ModelFile:
    model = parse_model(data, str(path))
    try:
        open_sentencepiece(path)
    except TokenizerError as error:
        raise CheckpointError(error.message, DOWNLOAD_AGAIN) from None
    if not add_prefix_space:
        model.normalizer_spec.add_dummy_prefix = False
    names = [piece.piece for piece in model.pieces]

    def name(index: int) -> str | None:
        return names[index] if 0 <= index < len(names) else None

    return ModelFile(
        kind="sentencepiece",
        path=path,
        vocab={piece: index for index, piece in enumerate(names)},
        texts=[piece.replace("\u2581", " ") for piece in names],
        special=special_pieces(model),
        bos=name(model.trainer_spec.bos_id),
        eos=name(model.trainer_spec.eos_id),
        check_exact=lambda: check_exact(model, str(path)),
        parts=lambda: sentencepiece_parts(model),
        reference=lambda added: sentencepiece_reference(model, added),
    )


def _ranks(path: Path, data: bytes, llama_3_1: bool) -> ModelFile:
    ranks = rank_file.parse_ranks(data, str(path))
    names = rank_file.special_names(llama_3_1=llama_3_1)
    return ModelFile(
        kind="tiktoken",
        path=path,
        vocab={name: ranks[token] for token, name in rank_file.rank_names(ranks).items()},
        texts=[token.decode("utf-8", "replace") for token in ranks],
        special=[added_token(len(ranks) + index, name) for index, name in enumerate(names)],
        bos=rank_file.BOS,
        eos=rank_file.EOS,
        check_exact=lambda: None,
        parts=lambda: rank_file.rank_parts(ranks),
        reference=lambda added: rank_reference(ranks, added),
    )
