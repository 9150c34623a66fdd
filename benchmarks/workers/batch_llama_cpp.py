"""llama.cpp, every row a sequence of its own in one context, greedy; see ``batch_protocol``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from batch_protocol import LENGTHS, Rows, measure_batches, read_question


def main() -> None:
    question = read_question()
    llama_cpp.llama_backend_init()
    file = str(Path(question.folder) / "model.gguf").encode()
    model = llama_cpp.llama_model_load_from_file(file, llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = len(LENGTHS)
    params.n_ctx = sum(LENGTHS) + len(LENGTHS) * (question.new_tokens + 8)
    params.kv_unified = True  # rows of different lengths share the room
    params.n_threads = params.n_threads_batch = question.threads
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def read(tokens: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Read (row, position, token, wanted) and return the likeliest next tokens of those wanted."""
        batch.n_tokens = len(tokens)
        for place, (row, position, token, wanted) in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        places = [place for place, (_, _, _, wanted) in enumerate(tokens) if wanted]
        rows = [llama_cpp.llama_get_logits_ith(context, place) for place in places]
        return [int(np.ctypeslib.as_array(row, (question.vocab_size,)).argmax()) for row in rows]

    def run(prompts: Rows, count: int) -> Rows:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), ctypes.c_bool(True))
        asked = [
            (row, position, token, position == len(prompt) - 1)
            for row, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        rows: Rows = [[token] for token in read(asked)]
        for step in range(count - 1):
            last = [(i, len(prompts[i]) + step, row[-1], True) for i, row in enumerate(rows)]
            for row, token in zip(rows, read(last), strict=True):
                row.append(token)
        return rows

    measure_batches(question, run)


main()
