"""optimum-onnx on its own export, through transformers' ``generate``; see ``protocol``."""

from __future__ import annotations

import time

from protocol import Stopwatch, read_question

watch, question = Stopwatch(), read_question()

import onnxruntime  # noqa: E402  (its import counts)
import torch  # noqa: E402
from optimum.onnxruntime import ORTModelForCausalLM  # noqa: E402


class Moments:
    """A streamer that notes when each token comes."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.moments: list[float] = []

    def put(self, ids: torch.Tensor) -> None:
        """The prompt comes first, as [1, T], then a [1] for each token."""
        if ids.ndim == 1:
            self.tokens.append(int(ids[0]))
            self.moments.append(time.monotonic())

    def end(self) -> None:
        """Nothing is held back."""


def main() -> None:
    torch.set_num_threads(question.threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = question.threads
    model = ORTModelForCausalLM.from_pretrained(question.folder, session_options=options)
    model.generation_config.eos_token_id = None
    watch.loaded()

    def generate(prompt: list[int], count: int) -> Moments:
        ids, moments = torch.tensor([prompt]), Moments()
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, streamer=moments)
        return moments

    done = generate(question.tokens(question.prompt_tokens, seed=1), question.new_tokens)
    watch.generated(done.tokens, done.moments)
    watch.prefill(lambda prompt: generate(prompt, 1), question)
    watch.print()


main()
