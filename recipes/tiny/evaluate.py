"""Measure the demo checkpoint: how many of its texts parse, and its perplexity beside a 5-gram model's.

python recipes/tiny/evaluate.py [--checkpoint recipes/tiny/checkpoint] [--json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from corpus import encode, read_heldout, split_corpus
from ngram import NgramModel
from sample import CHECKPOINT, load_model, load_tokenizer, sample_texts
from story import parses

from llama_export.model import LlamaForCausalLM

SAMPLE_COUNT = 200
SAMPLE_SEED = 1


@dataclass(frozen=True)
class Scores:
    """What the README states.

    Attributes:
        sampled_texts: How many texts were sampled from <s>, twice.
        temperature: Of the checkpoint's generation_config.json.
        top_p: Of the checkpoint's generation_config.json.
        parsed_texts: How many texts sampled so the grammar could have written.
        parsed_texts_undamped: The same at temperature 1 from the whole distribution.
        heldout_texts: Texts behind both perplexities.
        heldout_tokens: Tokens predicted in them, </s> included.
        llama_perplexity: Per token.
        ngram_perplexity: Per token, of a 5-gram model of the same training texts.
    """

    sampled_texts: int
    temperature: float
    top_p: float
    parsed_texts: int
    parsed_texts_undamped: int
    heldout_texts: int
    heldout_tokens: int
    llama_perplexity: float
    ngram_perplexity: float


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description="Measure the demo checkpoint.")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    scores = measure(args.checkpoint)
    print(json.dumps(asdict(scores), indent=2) if args.json else table(scores))


def measure(folder: Path) -> Scores:
    """Sample, parse, and score the held-out texts with both models."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    temperature, top_p = settings["temperature"], settings["top_p"]

    def parsed(temperature: float, top_p: float) -> int:
        return sum(map(parses, sample_texts(model, tokenizer, SAMPLE_COUNT, SAMPLE_SEED, temperature, top_p)))

    train_texts, _ = split_corpus()
    ngram = NgramModel((encode(text, tokenizer) for text in train_texts), tokenizer.vocab_size())
    heldout = read_heldout()
    ngram_nats = -np.concatenate([np.log(ngram.probabilities(encode(text, tokenizer))) for text in heldout])
    return Scores(
        sampled_texts=SAMPLE_COUNT,
        temperature=temperature,
        top_p=top_p,
        parsed_texts=parsed(temperature, top_p),
        parsed_texts_undamped=parsed(1.0, 1.0),
        heldout_texts=len(heldout),
        heldout_tokens=len(ngram_nats),
        llama_perplexity=perplexity(model, tokenizer, heldout),
        ngram_perplexity=float(np.exp(ngram_nats.mean())),
    )


@torch.no_grad()
def perplexity(
    model: LlamaForCausalLM, tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> float:
    """Return the perplexity per token of texts, each on its own from <s> to </s>."""
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([encode(text, tokenizer)])  # [1, T + 1]
        logits = model(ids[:, :-1])  # [1, T, V]
        nats += F.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    return float(np.exp(nats / tokens))


def table(scores: Scores) -> str:
    """Say the scores in four lines."""
    sampled = f"{scores.sampled_texts} texts sampled with seed {SAMPLE_SEED} at temperature"
    heldout = f"perplexity per token, {scores.heldout_texts} held-out texts, {scores.heldout_tokens} tokens"
    return "\n".join(
        (
            f"{sampled} {scores.temperature}, top-p {scores.top_p}: {scores.parsed_texts} parse",
            f"{sampled} 1, top-p 1: {scores.parsed_texts_undamped} parse",
            f"{heldout}: LLaMA {scores.llama_perplexity:.3f}",
            f"{heldout}: 5-gram {scores.ngram_perplexity:.3f}",
        )
    )


if __name__ == "__main__":
    main()
