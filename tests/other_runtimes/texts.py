"""Texts that tokenizers stumble over: published vectors where they are, and seeded random ones."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from asking import REPO

from llama_runtime.tokenizer import Tokenizer

FUZZ_TEXTS, SEED = 2000, 20261125


def real_vocabulary(name: str) -> Path:
    """A file of the shared folder of real vocabularies, which the repository may not contain."""
    path = Path(os.environ.get("LLAMA_EXPORT_TOKENIZERS", REPO.parent / "shared/tokenizers")) / name
    if not path.is_file():
        pytest.skip("no real vocabularies: set LLAMA_EXPORT_TOKENIZERS to the folder that has them")
    return path


def vector_texts(name: str) -> list[str]:
    """llama.cpp's texts for a vocabulary."""
    text = real_vocabulary(f"ggml-vocab-{name}.gguf.inp").read_text(encoding="utf-8")
    return text.split("\n__ggml_vocab_test__\n")[:-1]


def vector_ids(name: str) -> list[list[int]]:
    """What llama.cpp says about them."""
    lines = real_vocabulary(f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    return [[int(token) for token in line.split()] for line in lines]


def fuzz_texts(tokenizer: Tokenizer, size: int, count: int = FUZZ_TEXTS) -> list[str]:
    """Words of the vocabulary, runs of spaces, digits, controls and rare letters, put together at random."""
    rng = random.Random(SEED)
    special = tokenizer.vocabulary.special_ids
    # Words that are text: no special token's name, and no byte's, which stands for something else.
    words = [
        tokenizer.vocabulary.token_bytes(token).decode("utf-8", "ignore")
        for token in range(size)
        if token not in special
    ]
    makers = (
        lambda: " " * rng.randint(1, 20),
        lambda: rng.choice("\n\t\r") * rng.randint(1, 5),
        lambda: str(rng.randint(0, 10**9)),
        lambda: rng.choice(words),
        lambda: rng.choice(words),
        lambda: " " + rng.choice(words),
        lambda: rng.choice(".,!?/'\"-=_▁aeoSTs") * rng.randint(1, 12),
        lambda: rng.choice(("I'm", "we'LL", "they'd've", "it's", "'Tis")),
        lambda: chr(rng.randint(0x20, 0x24F)),
        lambda: chr(rng.randint(0x370, 0xD7FF)),
        lambda: chr(rng.randint(0x1F300, 0x1FAFF)),
        lambda: chr(rng.choice((rng.randint(0, 31), rng.randint(0xE000, 0x10FFFF)))),
        lambda: "e\u0301\u200d👩\u200d👩\u200d👧",
    )
    return ["".join(rng.choice(makers)() for _ in range(rng.randint(0, 16))) for _ in range(count)]
