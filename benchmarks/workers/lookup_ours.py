"""Generates with prompt lookup and without; prints tokens a second, behind a prompt that both have read."""

from __future__ import annotations

import json
import random
import sys
import time

import llama_runtime

UNTIL_CIRCLE, MEASURED, AHEAD = 600, 128, 8  # tokens


def main() -> None:
    """Greedy text that has run into its circle, then text drawn at random."""
    folder, threads, vocab_size = sys.argv[1:]
    model = llama_runtime.load(folder, threads=int(threads))
    draw = random.Random(3)
    prompt = [draw.randrange(259, int(vocab_size)) for _ in range(16)]

    def rate(prompt: list[int], temperature: float, ahead: int) -> tuple[float, list[int]]:
        options = llama_runtime.SamplingOptions(
            max_new_tokens=MEASURED + 1,
            ignore_eos=True,
            temperature=temperature,
            seed=1,
            prompt_lookup_num_tokens=ahead,
        )
        pieces = [(piece.token, time.perf_counter()) for piece in model.stream(prompt, options)]
        return MEASURED / (pieces[-1][1] - pieces[0][1]), [token for token, _ in pieces]

    until = llama_runtime.SamplingOptions(max_new_tokens=UNTIL_CIRCLE, ignore_eos=True)
    circle = prompt + list(model.generate(prompt, until).tokens)
    answer = {}
    for name, text, temperature in (("repeats", circle, 0.0), ("differs", prompt, 1.0)):
        rate(text, temperature, AHEAD)  # the first lookup asks the session how far logits move
        answer[f"{name}_plain"], plain = rate(text, temperature, 0)
        answer[f"{name}_lookup"], ahead = rate(text, temperature, AHEAD)
        assert plain == ahead, "prompt lookup must not change a text"
    print(json.dumps(answer))


main()
