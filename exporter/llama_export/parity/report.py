"""The outcome of a verification, as data; ``page`` draws it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_runtime.manifest import KnownAnswer, KnownOutput

REPORT_VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """What one rung of the ladder measured.

    Attributes:
        name: The rung.
        measured: The largest difference found; None if it was not measured.
        tolerance: The largest allowed; None for a rung that does not apply.
        unit: What the two numbers are.
        reason: Why any difference is allowed.
        detail: Over what it was measured; or why it was not.
        needed: Whether the bundle is proven only with it: False where it does not apply or was left out.
    """

    name: str
    measured: float | None
    tolerance: float | None
    unit: str
    reason: str | None
    detail: str
    needed: bool = True

    @property
    def passed(self) -> bool:
        """Whether it was measured and is within tolerance; a NaN is not."""
        if self.measured is None or self.tolerance is None:
            return False
        return self.measured <= self.tolerance

    @property
    def red(self) -> bool:
        """Whether the bundle is wrong by this rung."""
        return self.measured is not None and not self.passed


@dataclass(frozen=True)
class TensorDifference:
    """How one stored tensor differs from the checkpoint's, cast to the stored dtype.

    Attributes:
        name: The tensor.
        values: How many it has.
        differing: How many of them differ.
        largest: Largest absolute difference; infinite where a value is not finite.
    """

    name: str
    values: int
    differing: int
    largest: float


@dataclass(frozen=True)
class Blame:
    """Where candidate and reference part.

    Attributes:
        rung: The red rung whose tokens were run again, with every layer's intermediate values exposed.
        sentence: What was found, in words.
        layer: The first layer that differs; None where it is before or behind the layers, or nowhere.
        tensor: The first tensor that differs.
    """

    rung: str
    sentence: str
    layer: int | None
    tensor: str | None


@dataclass(frozen=True)
class LayerError:
    """How far one intermediate tensor is off.

    Attributes:
        layer: From 0; None before and behind the layers.
        tensor: Its name.
        error: Largest difference, as a fraction of the reference's largest value there.
    """

    layer: int | None
    tensor: str
    error: float


@dataclass(frozen=True)
class TokenChoice:
    """One greedy token.

    Attributes:
        chosen: By the candidate.
        wanted: By the reference, after the same tokens.
        margin: By how much the reference prefers its first to its second.
        behind: By how much it prefers its first to what was chosen.
    """

    chosen: int
    wanted: int
    margin: float
    behind: float


@dataclass(frozen=True)
class Plots:
    """Samples for the page; what was not measured is empty.

    Attributes:
        layers: Every intermediate tensor in the order of computation.
        positions: For each prompt, the error of the logits at each position, as a fraction of the largest.
        tokens: For each prompt, its greedy tokens.
        logits: Pairs of a reference's and the candidate's logit.
        tensors: Stored tensors that differ from the checkpoint's values, rounding included.
    """

    layers: tuple[LayerError, ...] = ()
    positions: tuple[tuple[float, ...], ...] = ()
    tokens: tuple[tuple[TokenChoice, ...], ...] = ()
    logits: tuple[tuple[float, float], ...] = ()
    tensors: tuple[TensorDifference, ...] = ()


@dataclass(frozen=True)
class Report:
    """All rungs, lowest first, and the answers that any device can repeat.

    Attributes:
        rungs: Lowest first; those above a red one are not measured.
        tokens_compared: Greedy tokens checked.
        near_ties: Of them, those where the reference's best two differ by less than twice the measured error.
        known_answers: Prompts, the tokens that follow and some of the reference's logits.
        seconds: How long it took.
        reference: What the bundle was compared with; None where only its own known answers were replayed.
        blame: Where candidate and reference part, when a rung is red.
        plots: Samples for the page.
        notes: What a reader must know of this verification besides.
        known_outputs: Texts and some of the reference's numbers: a task head's, or the last hidden states.
    """

    rungs: tuple[Outcome, ...]
    tokens_compared: int
    near_ties: int
    known_answers: tuple[KnownAnswer, ...]
    seconds: float
    reference: str | None = "eager PyTorch, float32"
    blame: Blame | None = None
    plots: Plots = field(default_factory=Plots)
    notes: tuple[str, ...] = ()
    known_outputs: tuple[KnownOutput, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every rung that is needed was measured and is within tolerance."""
        return all(rung.passed for rung in self.rungs if rung.needed or rung.red)

    def first_failure(self) -> str:
        """Name the lowest red rung in one clause."""
        rung = next(rung for rung in self.rungs if rung.red)
        return f"{rung.name}: measured {rung.measured:.3g}, allowed {rung.tolerance:.3g} ({rung.unit})"

    def summary(self) -> dict[str, Any]:
        """What goes into the manifest: the numbers, without samples; unmeasured is null."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "rungs": [asdict(rung) | {"passed": rung.passed} for rung in self.rungs],
            "tokens_compared": self.tokens_compared,
            "near_ties": self.near_ties,
            "seconds": round(self.seconds, 1),
            "blame": self.blame and asdict(self.blame),
            "notes": list(self.notes),
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data: ``parity.json`` and ``--json``. JSON knows no NaN: it is null too."""
        plain: dict[str, Any] = _finite(
            {"version": REPORT_VERSION} | self.summary() | {"plots": asdict(self.plots)}
        )
        return plain


def layer_of(tensor: str) -> int | None:
    """The layer in a tensor's name."""
    parts = tensor.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] else None


def _finite(value: Any) -> Any:
    """The same with null for every number that JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
