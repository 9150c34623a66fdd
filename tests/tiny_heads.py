"""Checkpoints of every head, written by transformers itself, and transformers' view of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from talking_checkpoint import CONFIG, train_tokenizer
from tiny_checkpoints import raw_config

ARCHITECTURES = {
    "feature-extraction": "LlamaModel",
    "text-classification": "LlamaForSequenceClassification",
    "token-classification": "LlamaForTokenClassification",
    "question-answering": "LlamaForQuestionAnswering",
}
LABELS = {
    "text-classification": ["calm", "stormy", "both"],
    "token-classification": ["O", "B-SEA", "I-SEA", "B-FOX", "I-FOX"],
}


def write_head_checkpoint(folder: Path, task: str, **changes: Any) -> Any:
    """Write a random checkpoint of a task, with a tokenizer.

    Args:
        folder: Is made.
        task: One of ``ARCHITECTURES``.
        changes: To config.json; ``id2label`` decides on the number of labels.

    Returns:
        Transformers' float32 model.
    """
    import transformers

    facts = raw_config(CONFIG)
    facts |= {"architectures": [ARCHITECTURES[task]], "pad_token_id": 0, "eos_token_id": 2}
    if task in LABELS:
        facts["id2label"] = dict(enumerate(LABELS[task]))
    facts |= changes
    config = transformers.LlamaConfig(**facts, attn_implementation="eager")
    model = getattr(transformers, ARCHITECTURES[task])(config).float().eval()
    generator = torch.Generator().manual_seed(len(task))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 2 and "embed_tokens" not in name:
                values *= 1.5 * weight.shape[1] ** -0.5
            weight.copy_(1 + 0.3 * values if "norm" in name else values)
    model.save_pretrained(folder)
    train_tokenizer(folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    return model
