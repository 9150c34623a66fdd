"""Our runtime on our bundle, as anybody would call it; see ``protocol``."""

from __future__ import annotations

import time

from protocol import Stopwatch, read_question

watch, question = Stopwatch(), read_question()

import llama_runtime  # noqa: E402  (its import counts)


def main() -> None:
    generator = llama_runtime.load(question.folder, threads=question.threads)
    watch.loaded()

    options = llama_runtime.SamplingOptions(max_new_tokens=question.new_tokens, ignore_eos=True)
    tokens, moments = [], []
    for piece in generator.stream(question.tokens(question.prompt_tokens, seed=1), options):
        tokens.append(piece.token)
        moments.append(time.monotonic())
    watch.generated(tokens, moments)

    only_first = llama_runtime.SamplingOptions(max_new_tokens=1, ignore_eos=True)
    watch.prefill(lambda prompt: generator.generate(prompt, only_first), question)
    watch.print()


main()
