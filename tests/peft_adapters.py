"""Adapters as PEFT writes them, every trained value moved from its start, and PEFT's own view of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_checkpoints import transformers_model


def write_adapter(base: Path, folder: Path, seed: int = 0, *, model: Any = None, **choices: Any) -> Path:
    """Save a LoRA adapter for a checkpoint; its factors, magnitudes, biases and whole modules are random.

    Args:
        base: Is opened as a causal language model.
        folder: Is made.
        seed: Of the random values.
        model: What is adapted in place of ``base``.
        choices: Of ``LoraConfig``.
    """
    import peft

    torch.manual_seed(seed)
    config = peft.LoraConfig(**{"task_type": "CAUSAL_LM"} | choices)
    model = peft.get_peft_model(model or transformers_model(base), config)
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    with torch.no_grad():
        for name, value in trained:
            if "magnitude" in name:
                value *= 1 + 0.3 * torch.rand_like(value)
            else:
                value += 0.2 * torch.randn_like(value)
    assert trained
    model.save_pretrained(folder)
    return folder


def write_soft_prompt(base: Path, folder: Path, seed: int = 0, **choices: Any) -> Path:
    """Save a learned prompt for a checkpoint: embeddings, or with ``token_dim`` keys and values."""
    import peft

    kind = peft.PrefixTuningConfig if "token_dim" in choices else peft.PromptTuningConfig
    torch.manual_seed(seed)
    model = peft.get_peft_model(transformers_model(base), kind(task_type="CAUSAL_LM", **choices))
    with torch.no_grad():
        for value in (value for value in model.parameters() if value.requires_grad):
            value.copy_(torch.randn_like(value))
    model.save_pretrained(folder)
    return folder


def peft_logits(base: Path, adapters: list[Path], ids: torch.Tensor) -> torch.Tensor:
    """[B, T] ids -> [B, T, V] logits of the adapters beside their base, not merged; the last on top."""
    import peft

    model = transformers_model(base)
    for adapter in adapters[:-1]:
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model = peft.PeftModel.from_pretrained(model, adapters[-1]).eval()
    with torch.no_grad():
        return model(ids).logits
