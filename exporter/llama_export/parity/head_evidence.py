"""What candidate and reference compute of a task head: whole texts, nothing cached."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from llama_export.graph import contract
from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import largest_difference
from llama_export.parity.reference import Read, reference_outputs
from llama_export.parity.report import LayerError
from llama_export.parity.scene import Row, Scene
from llama_export.parity.stored_weights import shown
from llama_runtime.extras import Outputs
from llama_runtime.tasks.batch import run_padded


class HeadEvidence(Evidence):
    """One bundle of a task head and one checkpoint, and what both say to the same whole texts."""

    @property
    def rows(self) -> list[tuple[int, ...]]:
        """The prompts' tokens."""
        return [prompt.tokens for prompt in self.prompts]

    @property
    def names(self) -> list[str]:
        """The head's outputs."""
        return [spec.name for spec in contract.outputs(self.config)]

    def alone(self, rows: Sequence[Sequence[int]]) -> list[Outputs]:
        """The candidate's outputs for each text by itself, through the runtime that ships."""
        return [run_padded(self.session, [row], self.names)[0] for row in rows]

    def batch_scene(self, left: bool | None) -> Scene:
        """All prompts as one batch.

        Args:
            left: Rows padded in front, or behind.
        """
        return Scene(tuple(Row(tokens, left=bool(left)) for tokens in self.rows))

    def _play_batch(self) -> list[Outputs]:
        sides = (True, False)
        return [row for left in sides for row in run_padded(self.session, self.rows, self.names, left=left)]

    @cached_property
    def _wanted_outputs(self) -> list[Outputs]:
        rows = [*self.rows, self.context] if self.context else self.rows
        return self._reference_outputs(self.read_stored, rows, "reference")

    @property
    def wanted_outputs(self) -> list[Outputs]:
        """The reference's outputs for each prompt."""
        return self._wanted_outputs[: len(self.prompts)]

    @property
    def wanted_context_outputs(self) -> Outputs:
        """The reference's outputs for the whole context."""
        return self._wanted_outputs[-1]

    def _reference_outputs(self, read: Read, rows: Sequence[Sequence[int]], title: str) -> list[Outputs]:
        with shown(read, title, self.stored.values()) as reading:
            return reference_outputs(self.config, reading, rows)

    def error(self, found: Sequence[Outputs], wanted: Sequence[Outputs]) -> float:
        """The largest difference of any output, as a fraction of the reference's largest value there."""
        both = list(zip(found, wanted, strict=True))
        return max(
            largest_difference(((got[name], want[name]) for got, want in both), scale)
            for name, scale in self.scales.items()
        )

    @cached_property
    def scales(self) -> dict[str, float]:
        """The reference's largest value in each output, which errors are fractions of."""
        return {
            name: max(float(np.abs(row[name]).max()) for row in self.wanted_outputs) for name in self.names
        }

    def compare_layers(self, scene: Scene, *, layers: int | None = None) -> list[LayerError]:
        """Every intermediate tensor of the first layers; or of the whole model and its outputs."""
        found = super().compare_layers(scene, layers=layers)
        if layers is not None:
            return found
        rows, left = [row.tokens for row in scene.rows], scene.rows[0].left
        outputs = run_padded(self.session, rows, self.names, left=left)
        both = list(zip(outputs, self.wanted_outputs, strict=False))  # a scene reads the first prompts
        return found + [
            LayerError(None, name, largest_difference(((g[name], w[name]) for g, w in both), scale))
            for name, scale in self.scales.items()
        ]

    @cached_property
    def passage_outputs(self) -> tuple[list[Outputs], list[Outputs]]:
        """Outputs for each passage: the candidate's, and the reference's with the unrounded weights."""
        wanted = self._reference_outputs(self.read_source, self.passages, "unrounded")
        return self.alone(self.passages), wanted
