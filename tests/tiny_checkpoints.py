"""Tiny random checkpoints with awkward shapes, written by safetensors itself, and transformers' view of them.

Everything that tests/unit/{model,graph,weights} and tests/parity compute on is made here, from fixed seeds.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llama_export.model import LlamaConfig, RopeConfig

# An odd vocabulary, a hidden size that is no power of two and head_dim that is not hidden_size / heads.
CONFIGS: dict[str, LlamaConfig] = {
    "gqa": LlamaConfig(
        vocab_size=131,
        hidden_size=42,
        intermediate_size=44,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=160,
        rms_norm_eps=1e-5,
    ),
    "mha_tied": LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=16,
        max_position_embeddings=160,
        rms_norm_eps=1e-6,
        rope=RopeConfig(rope_theta=500000.0),
        tie_word_embeddings=True,
    ),
    "mqa_llama3": LlamaConfig(
        vocab_size=211,
        hidden_size=40,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=160,
        rms_norm_eps=1e-5,
        rope=RopeConfig("llama3", 5000.0, 8.0, 1.0, 4.0, 32),
    ),
}

# The other rotary embeddings, each together with another activation, biases or a tied head; their contexts
# end well within the 160 positions that all of these models have.
VARIANTS: dict[str, LlamaConfig] = {
    "linear": dataclasses.replace(
        CONFIGS["gqa"], rope=RopeConfig("linear", factor=4.0), hidden_act="gelu", mlp_bias=True
    ),
    "dynamic": dataclasses.replace(
        CONFIGS["mha_tied"],
        max_position_embeddings=40,
        rope=RopeConfig("dynamic", factor=4.0, original_max_position_embeddings=40),
        hidden_act="gelu_new",
    ),
    "yarn": dataclasses.replace(
        CONFIGS["gqa"],
        rope=RopeConfig("yarn", 5000.0, 4.0, original_max_position_embeddings=40, beta_fast=4.0),
        hidden_act="gelu_pytorch_tanh",
        attention_bias=True,
        mlp_bias=True,
    ),
    "longrope": dataclasses.replace(
        CONFIGS["mqa_llama3"],
        rope=RopeConfig(
            "longrope",
            factor=4.0,
            original_max_position_embeddings=40,
            short_factor=tuple(1.0 + 0.05 * i for i in range(16)),
            long_factor=tuple(1.0 + 0.5 * i for i in range(16)),
        ),
        attention_bias=True,
    ),
}
ROPE_KEYS = {
    "default": ("rope_theta",),
    "linear": ("rope_theta", "factor"),
    "dynamic": ("rope_theta", "factor"),
    "llama3": (
        *("rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
    "yarn": (
        *("rope_theta", "factor", "original_max_position_embeddings", "attention_factor"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (
        *("rope_theta", "factor", "original_max_position_embeddings", "attention_factor"),
        *("short_factor", "long_factor"),
    ),
}  # fmt: skip

# OpenLLaMA 3B's kind of head: GroupQueryAttention takes multiples of 16 alone.
NARROW_HEADS = dataclasses.replace(CONFIGS["gqa"], head_dim=10, num_hidden_layers=1)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def with_layers(config: LlamaConfig, count: int) -> LlamaConfig:
    """The same model, deeper or shallower."""
    return dataclasses.replace(config, num_hidden_layers=count)


def random_weights(
    config: LlamaConfig, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Weights large enough that attention is peaked and logits differ, and unique per tensor."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in config.tensor_shapes().items():
        values = torch.randn(shape, generator=generator)
        if name.endswith(".bias"):
            values *= 0.3
        elif len(shape) == 1:
            values = 1 + 0.3 * values
        elif "embed_tokens" not in name:
            values *= 1.5 * shape[1] ** -0.5
        weights[name] = values.to(dtype)
    return weights


def raw_config(config: LlamaConfig, dtype: str = "float32", **extra: Any) -> dict[str, Any]:
    """``config.json`` as transformers 5 writes it."""
    rope = {"rope_type": config.rope.rope_type}
    for key in ROPE_KEYS[config.rope.rope_type]:
        value = getattr(config.rope, key)
        if value is not None:
            rope[key] = list(value) if isinstance(value, tuple) else value
    facts = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("rope", "head")}
    return {
        "architectures": [config.architecture],
        "model_type": "llama",
        "dtype": dtype,
        "bos_token_id": 1,
        "eos_token_id": None,
        "rope_parameters": rope,
        **facts,
        **extra,
    }


def write_checkpoint(
    folder: Path,
    config: LlamaConfig,
    dtype: str = "float32",
    *,
    shards: int = 1,
    weights: dict[str, Tensor] | None = None,
    unneeded: dict[str, Tensor] | None = None,
    **extra: Any,
) -> Path:
    """Write a Hugging Face folder.

    Args:
        folder: Is made.
        config: The architecture.
        dtype: Of the weights.
        shards: With more than one, the tensors are dealt out in turn and an index is written.
        weights: Default random ones.
        unneeded: Tensors that the model has no use for, added to the first file.
        extra: More keys for config.json.
    """
    folder.mkdir(parents=True)
    weights = random_weights(config, DTYPES[dtype]) if weights is None else weights
    (folder / "config.json").write_text(json.dumps(raw_config(config, dtype, **extra)))
    stored = weights | (unneeded or {})
    if shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {name: files[i % shards] for i, name in enumerate(weights)}
    weight_map |= dict.fromkeys(unneeded or {}, files[0])
    for file in files:
        inside = {name: stored[name] for name in stored if weight_map[name] == file}
        save_file(inside, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def link_like_the_hub(checkpoint: Path, cache: Path) -> Path:
    """A Hub cache's layout of the same files: named blobs, and a snapshot of symlinks to them."""
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        (blobs / f"{number:040x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    return snapshot


def transformers_model(folder: Path, stored_as: str = "float32") -> Any:
    """The independent oracle: transformers' model of a checkpoint, computing in float32.

    Args:
        folder: Read by transformers alone.
        stored_as: Round the weights to this dtype first, as an export with that precision does.
    """
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(DTYPES[stored_as]).float())
    return model
