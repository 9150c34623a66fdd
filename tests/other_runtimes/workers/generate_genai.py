"""onnxruntime-genai on a bundle of ours, ids in and ids out; see ``asked``."""

from __future__ import annotations

import json
import sys

import onnxruntime_genai


def main() -> None:
    question = json.load(sys.stdin)
    model = onnxruntime_genai.Model(question["bundle"])

    def generate(rows: list[list[int]]) -> list[list[int]]:
        params = onnxruntime_genai.GeneratorParams(model)
        length = len(rows[0]) + question["max_new_tokens"]
        params.set_search_options(do_sample=False, max_length=length, batch_size=len(rows))
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(rows if len(rows) > 1 else rows[0])
        steps = []
        # get_sequence() leaves the token out that ends the last row.
        while not generator.is_done():
            generator.generate_next_token()
            steps.append([int(token) for token in generator.get_next_tokens()])  # [B]
        return [cut(list(row)) for row in zip(*steps, strict=True)]

    def cut(tokens: list[int]) -> list[int]:
        """Without the padding behind the end of a row."""
        ends = [i for i, token in enumerate(tokens) if token in question["eos"]]
        return tokens[: ends[0] + 1] if ends else tokens

    prompts = question["prompts"]
    shortest = min(map(len, prompts))
    answer = {
        "greedy": [generate([prompt])[0] for prompt in prompts],
        # Its batches are padded by its tokenizer alone, so the rows here are of one length.
        "batch": generate([prompt[:shortest] for prompt in prompts]),
    }
    print(json.dumps(answer))


main()
