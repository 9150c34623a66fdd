"""Ten turns of a chat; prints how long the first token of the tenth took."""

from __future__ import annotations

import json
import random
import sys
import time

import llama_runtime

TURNS, WORDS, ANSWER_TOKENS = 10, 40, 32
VOCABULARY = "time sea wind salt small fox red run down still green once there was three know".split()  # noqa: SIM905


def main() -> None:
    """Talk ten turns; measure the tenth, or the tenth's whole prompt with an empty cache."""
    folder, threads, way = sys.argv[1:]
    model = llama_runtime.load(folder, threads=int(threads))
    options = llama_runtime.SamplingOptions(max_new_tokens=ANSWER_TOKENS, ignore_eos=True)
    chat, draw = llama_runtime.Conversation(model), random.Random(7)
    moments: list[float] = []
    for _ in range(TURNS):
        message = " ".join(draw.choices(VOCABULARY, k=WORDS))
        moments[:] = [time.perf_counter()]
        done = chat.send(message, options, on_piece=lambda _: moments.append(time.perf_counter()))
    read = len(done.prompt_tokens) - chat.reused_tokens
    if way == "anew":
        read = len(done.prompt_tokens)
        moments[:] = [time.perf_counter()]
        first = next(model.pieces(model.new_row(done.prompt_tokens, options, answer_ends=())))
        moments.append(time.perf_counter())
        assert first.token == done.tokens[0]
    took = moments[1] - moments[0]
    print(json.dumps({"first_token_s": took, "prompt_tokens": len(done.prompt_tokens), "read_tokens": read}))


main()
