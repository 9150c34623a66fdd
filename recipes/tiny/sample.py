"""Sample texts from a checkpoint with our own model class: its stored weights, float32 arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file
from torch import Tensor

from llama_export.checkpoint.config import parse_config
from llama_export.model import GrowingCache, LlamaForCausalLM

CHECKPOINT = Path(__file__).with_name("checkpoint")


def load_model(folder: Path = CHECKPOINT) -> LlamaForCausalLM:
    """Read the bfloat16 weights as they were written, widened to float32."""
    config = parse_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    model = LlamaForCausalLM(config, attention="sdpa")
    weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    model.load_state_dict(weights)
    return model.eval()


def load_tokenizer(folder: Path = CHECKPOINT) -> sentencepiece.SentencePieceProcessor:
    """Read ``tokenizer.model``."""
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@torch.no_grad()
def sample_texts(
    model: LlamaForCausalLM,
    tokenizer: sentencepiece.SentencePieceProcessor,
    count: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[str]:
    """Write texts from <s> to </s>, or to the model's longest sequence.

    No top-k and no penalty; with ``top_p`` 1 tokens are drawn from the whole distribution.

    Args:
        model: In float32.
        tokenizer: Its vocabulary.
        count: How many texts to write, all in one batch.
        seed: Of the draws.
        temperature: What the logits are divided by.
        top_p: Draw from the fewest likeliest tokens that hold this share of the probability.
    """
    generator = torch.Generator().manual_seed(seed)
    cache = GrowingCache()
    step = torch.full((count, 1), tokenizer.bos_id())
    steps = [step]
    ended = torch.zeros(count, 1, dtype=torch.bool)
    while not ended.all() and len(steps) < model.config.max_position_embeddings:
        logits = model(step, cache=cache)[:, -1]  # [B, V]
        step = _draw(logits / temperature, top_p, generator)  # [B, 1]
        steps.append(step)
        ended |= step == tokenizer.eos_id()
    return [_text(row, tokenizer) for row in torch.cat(steps, dim=1).tolist()]


def _draw(logits: Tensor, top_p: float, generator: torch.Generator) -> Tensor:
    ranked, ids = logits.softmax(dim=-1).sort(dim=-1, descending=True)  # [B, V]
    before = ranked.cumsum(dim=-1) - ranked
    drawn = torch.multinomial(ranked.masked_fill(before >= top_p, 0), num_samples=1, generator=generator)
    return ids.gather(1, drawn)  # [B, 1]


def _text(ids: list[int], tokenizer: sentencepiece.SentencePieceProcessor) -> str:
    """Decode what stands between <s> and the first </s>."""
    end = ids.index(tokenizer.eos_id()) if tokenizer.eos_id() in ids else len(ids)
    text: str = tokenizer.decode(ids[1:end])
    return text
