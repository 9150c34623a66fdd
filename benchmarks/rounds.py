"""Taking turns: A B C, A B C, ... so that a machine that changes its mood changes it for everyone."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llama_runtime.bandwidth import read_bandwidth

Sample = dict[str, float]

THREADS = 2


@dataclass(frozen=True)
class Candidate:
    """Something that can be measured again and again.

    Attributes:
        name: As the tables show it.
        run: Measures once; raises RuntimeError with the reason when it fails.
    """

    name: str
    run: Callable[[], Sample]


@dataclass
class Outcome:
    """All samples of one candidate, and the reasons of those rounds that failed."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def median(self, key: str) -> float | None:
        """None where nothing was measured."""
        values = [sample[key] for sample in self.samples]
        return statistics.median(values) if values else None

    def spread(self, key: str) -> tuple[float, float] | None:
        """Smallest and largest sample."""
        values = [sample[key] for sample in self.samples]
        return (min(values), max(values)) if values else None


def interleave(candidates: Sequence[Candidate], repeats: int, threads: int = THREADS) -> dict[str, Outcome]:
    """Measure every candidate once a round, each round starting one further on.

    A candidate that fails in the first round is not tried again; its reason stays in the outcome.
    Every sample notes the memory bandwidth of so many threads just before it.
    """
    outcomes = {candidate.name: Outcome() for candidate in candidates}
    for turn in range(repeats):
        first = turn % len(candidates) if candidates else 0
        for candidate in [*candidates[first:], *candidates[:first]]:
            outcome = outcomes[candidate.name]
            if outcome.failures and not outcome.samples:
                continue
            conditions = {"read_bytes_per_s": read_bandwidth(threads)}
            start = time.monotonic()
            try:
                outcome.samples.append(candidate.run() | conditions)
                state = ""
            except RuntimeError as error:
                outcome.failures.append(str(error))
                state = f", failed: {error}"
            took = time.monotonic() - start
            load = os.getloadavg()[0]
            print(
                f"round {turn + 1} of {repeats}: {candidate.name}: {took:.1f} s, load {load:.1f}{state}",
                file=sys.stderr,
                flush=True,
            )
    return outcomes
