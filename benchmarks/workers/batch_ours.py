"""Our runtime: the prompts together, or one after another; see ``batch_protocol``."""

from __future__ import annotations

import time

from batch_protocol import ROWS, Question, Rows, answer, measure_batches, rate, read_question

import llama_runtime


def main() -> None:
    question = read_question()
    generator = llama_runtime.load(question.folder, threads=question.threads)
    if question.way == "alone":
        alone(generator, question)
    else:
        measure_batches(question, lambda prompts, count: together(generator, prompts, count))


def options(count: int) -> llama_runtime.SamplingOptions:
    return llama_runtime.SamplingOptions(max_new_tokens=count, ignore_eos=True)


def together(generator: llama_runtime.Generator, prompts: Rows, count: int) -> Rows:
    done = generator.generate_batch(prompts, options(count), rows=len(prompts))
    for outcome in done:
        if isinstance(outcome, llama_runtime.LlamaRuntimeError):
            raise outcome
    return [list(outcome.tokens) for outcome in done]


def alone(generator: llama_runtime.Generator, question: Question) -> None:
    """One pass over all prompts: the first 1, 2 and 4 are part of it."""
    prompts, rates, tokens = question.prompts(), {}, []
    generator.generate(prompts[0], options(2))
    start = time.perf_counter()
    for prompt in prompts:
        tokens.append(list(generator.generate(prompt, options(question.new_tokens)).tokens))
        if (rows := len(tokens)) in ROWS:
            rates[rows] = rate(tokens, rows, question, time.perf_counter() - start)
    answer(rates, tokens)


main()
