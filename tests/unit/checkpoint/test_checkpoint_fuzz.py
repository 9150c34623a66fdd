"""Bytes changed at random: a checkpoint opens or is refused in one sentence, whatever they say."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llama_export.checkpoint import open_checkpoint
from llama_export.errors import LlamaExportError

CASES = 150
TOKENS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-",
    b"0",
    b"9" * 20,
    b"1e9",
    b"null",
    b"true",
    b"\xff",
    b"\\",
]


def mutate(data: bytes, stop: int, rng: random.Random) -> bytes:
    """Change, insert, delete or repeat a few bytes among the first ``stop``."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, span = rng.randrange(stop), rng.randint(1, 12)
        match rng.randrange(5):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                changed[at : at + 1] = rng.choice(TOKENS)
            case 2:
                changed[at:at] = rng.choice(TOKENS)
            case 3:
                del changed[at : at + span]
            case 4:
                changed[at:at] = changed[at : at + span]
    return bytes(changed)


@pytest.mark.parametrize(
    ("fixture", "name"),
    [
        ("single", "config.json"),
        ("single", "model.safetensors"),
        ("sharded", "model.safetensors.index.json"),
        ("sharded", "model-00002-of-00002.safetensors"),
    ],
)
def test_mutations_are_refused_in_one_sentence(request, fixture, name):
    folder: Path = request.getfixturevalue(fixture)
    file = folder / name
    whole = file.read_bytes()
    stop = len(whole)
    if name.endswith(".safetensors"):
        stop = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(name)
    refused = 0
    for _ in range(CASES):
        file.write_bytes(mutate(whole, stop, rng))
        try:
            checkpoint = open_checkpoint(folder)
        except LlamaExportError as error:
            refused += 1
            assert error.message.isprintable()
            assert len(error.message) < 500
            assert error.hint
        else:
            for stored in checkpoint.tensors.values():
                assert stored.read().shape == stored.shape
    assert refused > CASES // 3
