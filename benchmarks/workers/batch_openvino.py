"""OpenVINO GenAI's pipeline on several prompts, padded on the left with a mask; see ``batch_protocol``."""

from __future__ import annotations

import numpy as np
import openvino
import openvino_genai
from batch_protocol import Rows, measure_batches, read_question


def main() -> None:
    question = read_question()
    pipeline = openvino_genai.LLMPipeline(question.folder, "CPU", INFERENCE_NUM_THREADS=question.threads)

    def run(prompts: Rows, count: int) -> Rows:
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids = np.array([[0] * n + prompt for n, prompt in zip(padding, prompts, strict=True)], np.int64)
        mask = np.array([[0] * n + [1] * (longest - n) for n in padding], np.int64)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos = True
        config.do_sample = False
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(mask))
        return [[int(token) for token in row] for row in pipeline.generate(inputs, config).tokens]

    measure_batches(question, run)


main()
