"""Checkpoints reduced to their tokenizer files: SentencePiece's, Meta's ranks, tokenizer.json."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from talking_checkpoint import train_tokenizer
from tiny_checkpoints import CONFIGS
from tokenizers import models, pre_tokenizers, trainers

from llama_export.checkpoint import Checkpoint
from llama_export.model.config import LlamaConfig
from llama_export.tokenizer.rank_file import SPLIT
from llama_runtime.vocabulary import byte_of_character

REPO = Path(__file__).parents[1]
VOCABULARIES = Path(os.environ.get("LLAMA_EXPORT_TOKENIZERS", REPO.parent / "shared" / "tokenizers"))
COMPANIONS = (
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "generation_config.json"),
)
RANKS, PIECES = 320, 320
CORPUS = [
    "the quick brown fox jumps over the lazy dog, isn't it?",
    "a banana is a yellow fruit; 123 bananas grow in 45 bunches\n\n",
    "def f(x):\n    return  x + 1\n",
] * 20


def real_vocabulary(name: str) -> Path:
    """A file of the shared folder of real vocabularies, which the repository may not contain."""
    if not (VOCABULARIES / name).is_file():
        pytest.skip("no real vocabularies: set LLAMA_EXPORT_TOKENIZERS to the folder that has them")
    return VOCABULARIES / name


def vectors(name: str) -> list[tuple[str, list[int]]]:
    """llama.cpp's texts and ids."""
    *texts, _ = real_vocabulary(f"{name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = real_vocabulary(f"{name}.out").read_text().splitlines()
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, lines, strict=True)]


def write_ranks(path: Path) -> Path:
    """Train RANKS byte-level tokens with Llama 3's split, and write them as Meta does."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=RANKS, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(CORPUS, trainer)
    table = byte_of_character()
    ranked = sorted(library.get_vocab().items(), key=lambda item: item[1])
    lines = [
        f"{base64.b64encode(bytes(table[character] for character in name)).decode()} {rank}"
        for name, rank in ranked
    ]
    assert len(lines) == RANKS
    path.write_text("\n".join(lines) + "\n")
    return path


def write_pieces(path: Path, **changes: Any) -> Path:
    """Train PIECES pieces, and write them as SentencePiece does."""
    return train_tokenizer(path, **{"vocab_size": PIECES, **changes})


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def as_checkpoint(folder: Path, vocab_size: int, **changes: Any) -> Checkpoint:
    """What ``open_checkpoint`` would say of a folder that has weights too."""
    config: LlamaConfig = dataclasses.replace(CONFIGS["gqa"], vocab_size=vocab_size)
    companions = tuple(folder / name for name in COMPANIONS if (folder / name).exists())
    generation = folder / "generation_config.json"
    facts: dict[str, Any] = {
        "folder": folder,
        "config": config,
        "config_file": "config.json",
        "raw_config": {"bos_token_id": 1, "eos_token_id": 2},
        "dtype": torch.float32,
        "tensors": {},
        "weight_files": (),
        "companions": companions,
        "generation_config": json.loads(generation.read_text()) if generation.exists() else {},
    }
    return Checkpoint(**facts | changes)


def random_text(rng: random.Random, pieces: list[str]) -> str:
    """Mix what tokenizers stumble over: spaces, newlines, digits, rare letters, emoji, controls, specials."""
    makers: tuple[Callable[[], str], ...] = (
        lambda: " " * rng.randint(1, 20),
        lambda: rng.choice(["\n", "\t", "\r", "\r\n", " \n"]) * rng.randint(1, 5),
        lambda: str(rng.randint(0, 10**9)),
        lambda: rng.choice(pieces),
        lambda: rng.choice(pieces),
        lambda: rng.choice(pieces) + rng.choice(pieces),
        lambda: rng.choice(".,!?<>/'\"-=_▁aeo") * rng.randint(1, 12),
        lambda: rng.choice(["'s", "'LL", "'Ve", "he'ſ", "n't", "İ", "ſ"]),
        lambda: chr(rng.randint(0x20, 0x24F)),
        lambda: "".join(chr(rng.randint(0x370, 0x58F)) for _ in range(rng.randint(1, 6))),
        lambda: chr(rng.randint(0x370, 0xD7FF)),
        lambda: chr(rng.randint(0x1F300, 0x1FAFF)),
        lambda: chr(rng.choice((rng.randint(0, 31), rng.randint(0xE000, 0x10FFFF)))),
        lambda: "e" + "".join(chr(rng.randint(0x300, 0x36F)) for _ in range(rng.randint(1, 4))),
        lambda: rng.choice(["<s>", "</s>", "<unk>", "<|eot_id|>", "<|begin_of_text|>", "<0x0A>", "[INST]"]),
        lambda: "e\u0301\u200d👩\u200d👩\u200d👧",
        lambda: rng.choice(["\u00a0", "\u3000", "\u2028", "\u0085", "\ufeff", "\u200b"]),
    )
    return "".join(rng.choice(makers)() for _ in range(rng.randint(0, 16)))
