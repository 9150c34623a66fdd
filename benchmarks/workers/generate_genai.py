"""onnxruntime-genai on its builder's export, with the loop of its own examples; see ``protocol``."""

from __future__ import annotations

import json
import time

from protocol import PREFILL_TOKENS, Stopwatch, read_question

watch, question = Stopwatch(), read_question()

import onnxruntime_genai  # noqa: E402  (its import counts)


def main() -> None:
    config = onnxruntime_genai.Config(question.folder)
    threads = {"session_options": {"intra_op_num_threads": question.threads}}
    config.overlay(json.dumps({"model": {"decoder": threads}}))
    model = onnxruntime_genai.Model(config)
    watch.loaded()

    def generator(length: int) -> onnxruntime_genai.Generator:
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=length)
        return onnxruntime_genai.Generator(model, params)

    tokens, moments = [], []
    generation = generator(question.prompt_tokens + question.new_tokens)
    generation.append_tokens(question.tokens(question.prompt_tokens, seed=1))
    for _ in range(question.new_tokens):
        if generation.is_done():
            raise SystemExit("the model ended its text: the rest would not be comparable")
        generation.generate_next_token()
        tokens.append(int(generation.get_next_tokens()[0]))
        moments.append(time.monotonic())
    watch.generated(tokens, moments)

    def prefill(prompt: list[int]) -> None:
        generation = generator(PREFILL_TOKENS + 1)
        generation.append_tokens(prompt)
        generation.generate_next_token()

    del generation
    watch.prefill(prefill, question)
    watch.print()


main()
