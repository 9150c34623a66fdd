"""onnxruntime-genai's batched ``Generator``; see ``batch_protocol``.

It takes a rectangle padded on the right, as its own ``encode_batch`` makes it, and finds the padding by
the pad token's id: there is no mask to give. Padded on the left it generates other tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai
from batch_protocol import Rows, measure_batches, read_question


def main() -> None:
    question = read_question()
    config = onnxruntime_genai.Config(question.folder)
    threads = {"session_options": {"intra_op_num_threads": question.threads}}
    config.overlay(json.dumps({"model": {"decoder": threads}}))
    model = onnxruntime_genai.Model(config)
    pad = json.loads((Path(question.folder) / "genai_config.json").read_text())["model"]["pad_token_id"]

    def run(prompts: Rows, count: int) -> Rows:
        longest = max(map(len, prompts))
        ids = np.array([prompt + [pad] * (longest - len(prompt)) for prompt in prompts], np.int32)
        length = longest + count
        params = onnxruntime_genai.GeneratorParams(model)
        # No end of text before the last token: EOS is not chosen.
        params.set_search_options(
            do_sample=False, min_length=length, max_length=length, batch_size=len(prompts)
        )
        generation = onnxruntime_genai.Generator(model, params)
        generation.append_tokens(ids)
        for _ in range(count):
            generation.generate_next_token()
        return [generation.get_sequence(i)[longest:].tolist() for i in range(len(prompts))]

    measure_batches(question, run)


main()
