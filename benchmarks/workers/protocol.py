"""What a generating script is asked and what it answers: the same questions to every runtime.

A script gets a folder, a number of threads, the prompt's length and how many tokens to decode. It
prints one JSON line, last. It imports this file and its own runtime alone: it runs in that runtime's
environment.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

PREFILL_TOKENS = int(os.environ.get("BENCHMARK_PREFILL", 512))  # less where the model is smaller
PREFILL_REPEATS = 2


@dataclass(frozen=True)
class Question:
    """The command line.

    Attributes:
        folder: The export.
        threads: For the arithmetic.
        prompt_tokens: Length of the prompt before the first token.
        new_tokens: How many tokens to generate, the first one included.
        vocab_size: Token ids are drawn below it.
    """

    folder: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    vocab_size: int

    def tokens(self, count: int, seed: int) -> list[int]:
        """Token ids that are the same in every runtime, special and byte tokens left out."""
        draw = random.Random(seed)
        return [draw.randrange(259, self.vocab_size) for _ in range(count)]


@dataclass
class Answer:
    """What was measured; the parent adds memory.

    Attributes:
        load_s: From the start of the script's imports to a runtime that is ready.
        first_token_s: From the process's start to the first token after the prompt.
        decode_tokens_per_s: Over the tokens after the first.
        prefill_tokens_per_s: The better of two prompts of PREFILL_TOKENS, each in an empty cache.
        tokens: What was generated: equal tokens show that equal work was done.
    """

    load_s: float = 0.0
    first_token_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    tokens: list[int] | None = None


class Stopwatch:
    """Turns the moments at which tokens came into an ``Answer``."""

    def __init__(self) -> None:
        self.started = float(os.environ.get("BENCHMARK_STARTED", time.monotonic()))
        self.imported = time.monotonic()
        self.answer = Answer()

    def loaded(self) -> None:
        """Call when the runtime is ready for a prompt."""
        self.answer.load_s = time.monotonic() - self.imported

    def generated(self, tokens: list[int], moments: list[float]) -> None:
        """Note a generation: its tokens, and the ``time.monotonic()`` at which each came."""
        self.answer.tokens = tokens
        self.answer.first_token_s = moments[0] - self.started
        if len(moments) > 1:
            self.answer.decode_tokens_per_s = (len(moments) - 1) / (moments[-1] - moments[0])

    def prefill(self, run: Callable[[list[int]], None], question: Question) -> None:
        """Time prompts of PREFILL_TOKENS; ``run`` returns when the token after the prompt is known."""
        rates = []
        for repeat in range(PREFILL_REPEATS):
            tokens = question.tokens(PREFILL_TOKENS, seed=100 + repeat)
            start = time.monotonic()
            run(tokens)
            rates.append(PREFILL_TOKENS / (time.monotonic() - start))
        self.answer.prefill_tokens_per_s = max(rates)

    def print(self) -> None:
        """The answer, as one line of JSON."""
        print(json.dumps(asdict(self.answer)), flush=True)


def read_question() -> Question:
    """The question on the command line."""
    folder, *numbers = sys.argv[1:]
    return Question(folder, *map(int, numbers))
