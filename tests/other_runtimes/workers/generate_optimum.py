"""optimum-onnx on a bundle of ours: greedy, beam search, and a left-padded batch; see ``asked``."""

from __future__ import annotations

import json
import sys

import torch
from optimum.onnxruntime import ORTModelForCausalLM


def main() -> None:
    question = json.load(sys.stdin)
    model = ORTModelForCausalLM.from_pretrained(question["bundle"])
    pad = model.generation_config.pad_token_id
    pad = question["eos"][0] if pad is None else pad

    def generate(rows: list[list[int]], **options: object) -> list[list[int]]:
        longest = max(map(len, rows))
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])  # [B, T]
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        made = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=question["max_new_tokens"],
            do_sample=False,
            pad_token_id=pad,
            **options,
        )
        return [cut(row[longest:].tolist()) for row in made]

    def cut(tokens: list[int]) -> list[int]:
        """Without the padding behind the end of a row."""
        ends = [i for i, token in enumerate(tokens) if token in question["eos"]]
        return tokens[: ends[0] + 1] if ends else tokens

    prompts = question["prompts"]
    answer = {
        "greedy": [generate([prompt])[0] for prompt in prompts],
        "batch": generate(prompts),
        "beams": [generate([prompt], num_beams=4, num_return_sequences=2) for prompt in prompts],
    }
    print(json.dumps(answer))


main()
