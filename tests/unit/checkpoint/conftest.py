"""A tiny checkpoint with awkward shapes, written by safetensors itself, for tests to break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llama_export.checkpoint.config import parse_config


@pytest.fixture
def raw_config() -> dict[str, Any]:
    """Llama 2 style: GQA, head_dim that is not hidden_size / heads, odd vocabulary."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 37,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "pretraining_tp": 2,
        "transformers_version": "4.40.0",
    }


@pytest.fixture
def weights(raw_config: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = parse_config(raw_config).tensor_shapes()
    return {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}


@pytest.fixture
def single(tmp_path: Path, raw_config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """A folder with config.json and model.safetensors."""
    folder = tmp_path / "single"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw_config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def sharded(tmp_path: Path, raw_config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """The same in two shards: layer 1 and what follows it are in the second."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw_config))
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    names = list(weights)
    cut = names.index("model.layers.1.input_layernorm.weight")
    weight_map = {name: first if index < cut else second for index, name in enumerate(names)}
    for shard in (first, second):
        save_file({name: weights[name] for name in names if weight_map[name] == shard}, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
