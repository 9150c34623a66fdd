"""A tiny checkpoint with everything a person's folder has: tokenizer, generation config, licence, template.

Its weights are random, so it talks nonsense; but it talks, through a SentencePiece model trained here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tiny_checkpoints import CONFIGS, write_checkpoint

import llama_export
from llama_export.model import LlamaConfig

GraphOf = Callable[[LlamaConfig, str], Any]

CORPUS = [
    "once upon a time there was a small red fox by the sea",
    "the three most important things to know about the sea are wind, salt and time",
    "seven small streams run down to the still green sea",
] * 20
# More ids than pieces, as checkpoints have whose vocabulary was padded.
CONFIG = dataclasses.replace(CONFIGS["gqa"], vocab_size=323, num_hidden_layers=2)
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def train_tokenizer(path: Path, **changes: Any) -> Path:
    """A 320-piece BPE model with byte fallback, as Llama's."""
    options = {"model_type": "bpe", "vocab_size": 320, "byte_fallback": True}
    options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2}
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=file, **options | changes
        )
    return path


def write_talking_checkpoint(
    folder: Path, dtype: str = "bfloat16", config: LlamaConfig = CONFIG, *, shards: int = 1, **extra: Any
) -> Path:
    """Write a Hugging Face folder that a person could have downloaded; ``extra`` goes into config.json."""
    write_checkpoint(folder, config, dtype, shards=shards, **{"eos_token_id": 2} | extra)
    train_tokenizer(folder / "tokenizer.model")
    settings = {"add_bos_token": True, "add_eos_token": False, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 7]}))
    (folder / "LICENSE").write_text("Do good.\n")
    (folder / "USE_POLICY.md").write_text("Do no harm.\n")
    return folder


def files_in(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file's bytes, mode and time of change, by relative path: what must stay as it was."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Fixtures, for the conftest.py of whoever needs them.


@pytest.fixture(scope="session")
def quick_graphs(graph_of: GraphOf) -> Iterator[None]:
    """Exports in this process take each graph from the cache; what surrounds it is what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama_export.pipeline.build_graph", graph_of)
        yield


@pytest.fixture(scope="session")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint that no test may change."""
    return write_talking_checkpoint(tmp_path_factory.mktemp("talking") / "fox")


@pytest.fixture(scope="session")
def talking_bundle(tmp_path_factory: pytest.TempPathFactory, talking: Path, quick_graphs: None) -> Path:
    """Its bundle, verified: linked, flash path; no test may change it."""
    return llama_export.export(talking, tmp_path_factory.mktemp("bundle") / "fox").output
