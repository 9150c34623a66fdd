"""Export with transformers' own ONNX exporter: ``python export_transformers.py CHECKPOINT OUTPUT``."""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM
from transformers.exporters import OnnxConfig, OnnxExporter

EXAMPLE_TOKENS = 8


def main(checkpoint: str, output: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    token_ids = torch.arange(3, 3 + EXAMPLE_TOKENS)[None]  # [1, T]
    inputs = {"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}
    exported = OnnxExporter().export_for_generation(model, inputs, OnnxConfig(dynamic=True))
    exported.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
