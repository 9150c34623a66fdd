"""The corpus: distinct stories from one seed, split, and packed into rows of tokens."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from story import generate

SEED = 20240229
TRAIN_COUNT = 32_000
HELDOUT_COUNT = 200
HELDOUT_FILE = Path(__file__).with_name("heldout.txt")


def split_corpus(train_count: int = TRAIN_COUNT) -> tuple[list[str], list[str]]:
    """Write distinct stories; the first of them are held out.

    Args:
        train_count: How many texts to train on.

    Returns:
        The texts to train on and the ``HELDOUT_COUNT`` held-out ones; none is in both.
    """
    rng = random.Random(SEED)
    texts: dict[str, None] = {}
    while len(texts) < HELDOUT_COUNT + train_count:
        texts.setdefault(generate(rng))
    ordered = list(texts)
    return ordered[HELDOUT_COUNT:], ordered[:HELDOUT_COUNT]


def write_heldout(texts: Iterable[str], path: Path = HELDOUT_FILE) -> None:
    """Write texts with an empty line between them."""
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def read_heldout(path: Path = HELDOUT_FILE) -> list[str]:
    """Read what ``write_heldout`` wrote."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n\n")


def encode(text: str, tokenizer: sentencepiece.SentencePieceProcessor) -> list[int]:
    """Turn a text into its ids between <s> and </s>."""
    ids: list[int] = tokenizer.encode(text, add_bos=True, add_eos=True)
    return ids


def pack_rows(
    texts: Iterable[str], tokenizer: sentencepiece.SentencePieceProcessor, length: int
) -> NDArray[np.int64]:
    """Fill rows of ``length`` tokens with whole texts; the last text of a row is cut where the row ends.

    Every row starts with <s>, so that no token is ever predicted from half a story.

    Returns:
        [rows, length] int64.
    """
    return np.array(list(_rows(texts, tokenizer, length)), dtype=np.int64)


def _rows(
    texts: Iterable[str], tokenizer: sentencepiece.SentencePieceProcessor, length: int
) -> Iterator[list[int]]:
    row: list[int] = []
    for text in texts:
        row += encode(text, tokenizer)
        if len(row) >= length:
            yield row[:length]
            row = []
