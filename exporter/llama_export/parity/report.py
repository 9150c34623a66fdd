"""The outcome of a verification, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llama_runtime.manifest import KnownAnswer


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        name: What was compared.
        measured: The largest difference found; None if a lower rung failed before it was measured.
        tolerance: The largest allowed.
        detail: What the numbers mean, and over how many values they were taken.
    """

    name: str
    measured: float | None
    tolerance: float
    detail: str

    @property
    def passed(self) -> bool:
        """Whether it was measured and is within tolerance; a NaN is not."""
        return self.measured is not None and self.measured <= self.tolerance


@dataclass(frozen=True)
class Report:
    """All rungs, lowest first, and the answers that any device can repeat.

    Attributes:
        rungs: Lowest first; those above a failed one are not measured.
        tokens_compared: Greedy tokens checked.
        near_ties: Of them, those where the reference's best two differ by less than twice the measured error.
        known_answers: Prompts, the tokens that follow and some of the reference's logits.
        seconds: How long it took.
    """

    rungs: tuple[Rung, ...]
    tokens_compared: int
    near_ties: int
    known_answers: tuple[KnownAnswer, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every rung is within tolerance."""
        return all(rung.passed for rung in self.rungs)

    def first_failure(self) -> str:
        """Name the lowest red rung in one clause."""
        rung = next(rung for rung in self.rungs if not rung.passed)
        return f"{rung.name}: measured {rung.measured:.3g}, allowed {rung.tolerance:.3g} ({rung.detail})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest and ``--json``; unmeasured is null, as JSON has no NaN a NaN is too."""
        rungs = [asdict(rung) | {"passed": rung.passed} for rung in self.rungs]
        for rung in rungs:
            if rung["measured"] is not None and rung["measured"] != rung["measured"]:
                rung["measured"] = None
        return {
            "passed": self.passed,
            "reference": "eager PyTorch, float32",
            "rungs": rungs,
            "tokens_compared": self.tokens_compared,
            "near_ties": self.near_ties,
            "seconds": round(self.seconds, 1),
        }
