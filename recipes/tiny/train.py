"""Make the demo checkpoint: corpus, tokenizer, a small LLaMA trained on CPU, a Hugging Face folder.

python recipes/tiny/train.py [--output recipes/tiny/checkpoint]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from corpus import HELDOUT_FILE, SEED, pack_rows, split_corpus, write_heldout
from hf_folder import write_folder
from torch import Tensor
from train_tokenizer import VOCAB_SIZE, train_tokenizer

from llama_export.model import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
CONFIG = LlamaConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=192,
    intermediate_size=560,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,  # hidden_size / num_attention_heads: optimum's runtime class assumes it
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
)
TOKENIZER_TEXTS = 5_000
# A story and a half to the row teaches agreement fastest; the last texts fill every position there is.
SHORT_ROW, LONG_ROW = 160, CONFIG.max_position_embeddings
LONG_SHARE = 0.1
TOKENS_PER_STEP = 1024
WARMUP_STEPS = 60
PEAK_LEARNING_RATE = 3e-3
THREADS = 1  # one sums in the same order on every machine, and lets others work


def main() -> None:
    """Run the whole recipe."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint from a fixed seed.")
    parser.add_argument("--output", type=Path, default=HERE / "checkpoint", help="the folder to write")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)

    start = time.monotonic()
    train_texts, heldout_texts = split_corpus()
    write_heldout(heldout_texts, HELDOUT_FILE)
    _report(f"{len(train_texts)} texts to train on, {len(heldout_texts)} held out")
    train_tokenizer(train_texts[:TOKENIZER_TEXTS], output / "tokenizer.model")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(output / "tokenizer.model"))
    long_from = round(len(train_texts) * (1 - LONG_SHARE))
    batches = make_batches(train_texts[:long_from], tokenizer, SHORT_ROW)
    batches += make_batches(train_texts[long_from:], tokenizer, LONG_ROW)

    model = LlamaForCausalLM(CONFIG, attention="sdpa")
    initialise(model)
    train(model, batches)
    write_folder(model, output)
    _report(f"wrote {output} after {time.monotonic() - start:.0f} s")


def initialise(model: LlamaForCausalLM) -> None:
    """Draw every matrix from normal(0, 0.02); what writes to the residual stream starts smaller."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            narrow = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = (2 * model.config.num_hidden_layers) ** -0.5 if narrow else 1.0
            torch.nn.init.normal_(weight, std=0.02 * scale)


def make_batches(
    texts: list[str], tokenizer: sentencepiece.SentencePieceProcessor, length: int
) -> list[Tensor]:
    """Pack texts into batches [B, length + 1]: each token is also the label of the one before."""
    rows = torch.from_numpy(pack_rows(texts, tokenizer, length + 1))
    return list(rows.split(TOKENS_PER_STEP // length))


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which learn to copy names in fewer steps so; AdamW for the rest."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.dim() == 2]
    chosen = set(matrices)
    others = [weight for weight in model.parameters() if weight not in chosen]
    return [
        torch.optim.Muon(matrices, lr=PEAK_LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98), fused=True),
    ]


def train(model: LlamaForCausalLM, batches: list[Tensor]) -> None:
    """Go through batches of [B, T + 1] tokens once, on a cosine schedule."""
    optimizers = make_optimizers(model)
    tokens = 0
    total = sum(batch[:, 1:].numel() for batch in batches)
    _report(f"{total} tokens in {len(batches)} steps")
    start = time.monotonic()
    for step, batch in enumerate(batches):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, len(batches))
        logits = model(batch[:, :-1])  # [B, T, V]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens += batch[:, 1:].numel()
        if (step + 1) % 50 == 0 or step + 1 == len(batches):
            rate = tokens / (time.monotonic() - start)
            left = (total - tokens) / rate
            progress = f"step {step + 1}/{len(batches)}  loss {loss.item():.4f}"
            _report(f"{progress}  {rate:.0f} tokens/s  {left:.0f} s left")


def learning_rate(step: int, steps: int) -> float:
    """Rise linearly, then fall along a cosine to zero."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (steps - WARMUP_STEPS)
    return PEAK_LEARNING_RATE * (1 + math.cos(math.pi * progress)) / 2


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
