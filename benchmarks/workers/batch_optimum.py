"""optimum-onnx through transformers' ``generate``, rows padded on the left; see ``batch_protocol``."""

from __future__ import annotations

import onnxruntime
import torch
from batch_protocol import Rows, measure_batches, read_question
from optimum.onnxruntime import ORTModelForCausalLM

PAD = 0


def main() -> None:
    question = read_question()
    torch.set_num_threads(question.threads)
    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = question.threads
    model = ORTModelForCausalLM.from_pretrained(question.folder, session_options=session)
    model.generation_config.eos_token_id = None

    def run(prompts: Rows, count: int) -> Rows:
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids = torch.tensor([[PAD] * n + prompt for n, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
        generated = model.generate(
            ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=PAD
        )
        return generated[:, longest:].tolist()

    measure_batches(question, run)


main()
