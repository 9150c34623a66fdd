"""OpenVINO GenAI on optimum-intel's export; see ``protocol``."""

from __future__ import annotations

import time

from protocol import Stopwatch, read_question

watch, question = Stopwatch(), read_question()

import numpy as np  # noqa: E402
import openvino  # noqa: E402  (its import counts)
import openvino_genai  # noqa: E402


def main() -> None:
    pipeline = openvino_genai.LLMPipeline(question.folder, "CPU", INFERENCE_NUM_THREADS=question.threads)
    watch.loaded()

    def generate(prompt: list[int], new_tokens: int) -> openvino_genai.EncodedResults:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        return pipeline.generate(openvino.Tensor(np.array([prompt], np.int64)), config)

    began = time.monotonic()
    found = generate(question.tokens(question.prompt_tokens, seed=1), question.new_tokens)
    metrics = found.perf_metrics
    first = began + metrics.get_ttft().mean / 1e3
    gap = metrics.get_tpot().mean / 1e3
    moments = [first + gap * index for index in range(question.new_tokens)]
    watch.generated([int(token) for token in found.tokens[0]], moments)
    watch.prefill(lambda prompt: generate(prompt, 1), question)
    watch.print()


main()
