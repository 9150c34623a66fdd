"""The keys and values of a learned prompt, as the reference has them."""

from __future__ import annotations

from dataclasses import replace

import torch

from llama_export.checkpoint import Checkpoint, SoftPrompt, nonfinite
from llama_export.errors import CheckpointError
from llama_export.model import LlamaConfig
from llama_export.parity.reference import Past, Read, reference_past


def soft_prompt_past(config: LlamaConfig, prompt: SoftPrompt, read: Read) -> Past:
    """Compute what a learned prompt puts in front of every text; one layer's weights are in memory at a time.

    Args:
        config: The checkpoint's.
        prompt: The learned prompt.
        read: Asked for the checkpoint's weights, adapters merged, where embeddings were learned.

    Returns:
        Keys and values of every layer, [1, K, P, D] float32 each.

    Raises:
        CheckpointError: A value is NaN or infinite.
    """
    values = prompt.tensor.read()
    if nonfinite(values):
        raise CheckpointError(
            f"{prompt.folder}: tensor {prompt.tensor.name} holds NaN or infinite values",
            "the training diverged or the file is damaged; use another adapter or download it again",
        )
    if prompt.kind == "embeddings":
        return reference_past(config, read, values.float())
    layers, heads, width = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    split = values.float().view(1, len(values), 2 * layers, heads, width)
    parts = [part.contiguous() for part in split.permute(2, 0, 3, 1, 4)]  # 2 * layers of [1, K, P, D]
    return list(zip(parts[::2], parts[1::2], strict=True))


def soft_prompt_tensors(past: Past) -> dict[str, torch.Tensor]:
    """Name keys and values as the bundle's file does: ``0`` to ``2L - 1``, [K, P, D] each."""
    return {str(i): tensor[0].contiguous() for i, tensor in enumerate(t for pair in past for t in pair)}


def for_texts(checkpoint: Checkpoint) -> LlamaConfig:
    """The config with the positions that a learned prompt leaves to texts."""
    prompt, config = checkpoint.soft_prompt, checkpoint.config
    if prompt is None:
        return config
    return replace(config, max_position_embeddings=config.max_position_embeddings - prompt.positions)
