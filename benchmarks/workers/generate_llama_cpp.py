"""llama.cpp through its own C functions, greedy; see ``protocol``."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from protocol import PREFILL_TOKENS, Stopwatch, read_question

watch, question = Stopwatch(), read_question()

import llama_cpp  # noqa: E402  (its import counts)
import numpy as np  # noqa: E402


def main() -> None:
    llama_cpp.llama_backend_init()
    file = str(Path(question.folder) / "model.gguf").encode()
    model = llama_cpp.llama_model_load_from_file(file, llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = max(question.prompt_tokens + question.new_tokens, PREFILL_TOKENS) + 8
    params.n_batch = params.n_ubatch = PREFILL_TOKENS
    params.n_threads = params.n_threads_batch = question.threads
    context = llama_cpp.llama_init_from_model(model, params)
    watch.loaded()

    def read(tokens: list[int]) -> int:
        """Read tokens, a batch at a time, and return the likeliest next one."""
        for start in range(0, len(tokens), PREFILL_TOKENS):
            chunk = tokens[start : start + PREFILL_TOKENS]
            array = (llama_cpp.llama_token * len(chunk))(*chunk)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(chunk))):
                raise SystemExit("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, (question.vocab_size,)).argmax())

    def forget() -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), ctypes.c_bool(True))

    tokens, moments = [], []
    token = read(question.tokens(question.prompt_tokens, seed=1))
    for _ in range(question.new_tokens):
        tokens.append(token)
        moments.append(time.monotonic())
        if len(tokens) < question.new_tokens:
            token = read([token])
    watch.generated(tokens, moments)

    def prefill(prompt: list[int]) -> None:
        forget()
        read(prompt)

    watch.prefill(prefill, question)
    watch.print()


main()
