"""What the reference computed, written down in the manifest so that any device can prove itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    """Some of the reference's logits at the step that chose ``tokens[position]``."""

    position: int
    token_ids: tuple[int, ...]
    logits: tuple[float, ...]

    def __post_init__(self) -> None:
        check_at_least(0, position=self.position)
        if len(self.token_ids) != len(self.logits):
            raise ValueError(f"logits has {len(self.logits)} numbers, token_ids {len(self.token_ids)}")


@dataclass(frozen=True)
class KnownAnswer:
    """A prompt, the reference's greedy continuation, and what a device must reproduce of it.

    ``near_ties`` are indices into ``tokens`` where the reference's two best logits are too
    close to demand equality; ``tolerance`` is absolute and holds for every probe.
    """

    prompt: str | None
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    near_ties: tuple[int, ...]
    probes: tuple[Probe, ...]
    tolerance: float

    def __post_init__(self) -> None:
        if not self.prompt_tokens or not self.tokens:
            raise ValueError("prompt_tokens and tokens need at least one token each")
        if self.tolerance < 0:
            raise ValueError(f"tolerance is {self.tolerance}, needs at least 0")
        for position in (*self.near_ties, *(probe.position for probe in self.probes)):
            if not 0 <= position < len(self.tokens):
                raise ValueError(
                    f"near_ties and probes name position {position}, tokens has {len(self.tokens)}"
                )


@dataclass(frozen=True)
class OutputProbe:
    """Some of the reference's numbers in one output: ``values[k]`` stands at ``indices[k]``, row-major."""

    output: str
    indices: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        check_at_least(0, indices=min(self.indices, default=0))
        if len(self.indices) != len(self.values):
            raise ValueError(f"values has {len(self.values)} numbers, indices {len(self.indices)}")


@dataclass(frozen=True)
class KnownOutput:
    """A text, and some of the numbers of its outputs; ``tolerance`` is absolute and holds for each."""

    text: str | None
    token_ids: tuple[int, ...]
    probes: tuple[OutputProbe, ...]
    tolerance: float

    def __post_init__(self) -> None:
        if not self.token_ids or not self.probes:
            raise ValueError("token_ids and probes need at least one entry each")
        if self.tolerance < 0:
            raise ValueError(f"tolerance is {self.tolerance}, needs at least 0")


def check_at_least(least: int, **fields: int) -> None:
    """Refuse a number that is too small.

    Raises:
        ValueError: With the field's name.
    """
    for field, value in fields.items():
        if value < least:
            raise ValueError(f"{field} is {value}, needs at least {least}")
