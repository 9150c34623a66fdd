"""What a script that generates several rows at once is asked and what it answers.

It gets a folder, a number of threads, how many tokens to generate for each row and the vocabulary's
size, and prints one JSON line, last: tokens a second of all rows together, by number of rows, and the
tokens of the largest batch. As ``protocol``, this file runs in every runtime's environment.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

# Any batch of two or more begins with the shortest and the longest.
LENGTHS = (17, 64, 31, 48, 24, 57, 38, 51)
ROWS = (1, 2, 4, 8)

Rows = list[list[int]]


@dataclass(frozen=True)
class Question:
    """The command line.

    Attributes:
        folder: The export.
        threads: For the arithmetic.
        new_tokens: For every row.
        vocab_size: Token ids are drawn below it.
        way: For our runtime: "alone" or "together".
    """

    folder: str
    threads: int
    new_tokens: int
    vocab_size: int
    way: str = ""

    def prompts(self) -> Rows:
        """Prompts of the lengths above, special and byte tokens left out."""
        draw = random.Random(3)
        return [[draw.randrange(259, self.vocab_size) for _ in range(length)] for length in LENGTHS]


def read_question() -> Question:
    """The question on the command line."""
    folder, threads, new_tokens, vocab_size, *way = sys.argv[1:]
    return Question(folder, int(threads), int(new_tokens), int(vocab_size), *way)


def measure_batches(question: Question, run: Callable[[Rows, int], Rows]) -> None:
    """Time batches of 1, 2, 4 and 8 rows and print the answer.

    Args:
        question: What was asked.
        run: From prompts and a number of new tokens to the new tokens of every row.
    """
    prompts, rates, tokens = question.prompts(), {}, []
    run(prompts[:2], 2)  # the first run of a process pays for more than itself
    for rows in ROWS:
        start = time.perf_counter()
        tokens = run(prompts[:rows], question.new_tokens)
        rates[rows] = rate(tokens, rows, question, time.perf_counter() - start)
    answer(rates, tokens)


def rate(tokens: Rows, rows: int, question: Question, seconds: float) -> float:
    """Tokens a second of all rows; SystemExit where a row has another number of tokens than asked for."""
    if [len(row) for row in tokens] != [question.new_tokens] * rows:
        raise SystemExit(
            f"error: {[len(row) for row in tokens]} tokens, asked for {question.new_tokens} each"
        )
    return rows * question.new_tokens / seconds


def answer(rates: dict[int, float], tokens: Rows) -> None:
    """Print it."""
    found = {f"rows_{rows}_tokens_per_s": value for rows, value in rates.items()}
    print(json.dumps(found | {"tokens": tokens}), flush=True)
