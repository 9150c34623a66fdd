"""What a session needs of an engine: memory for caches, and runs of one of its profiles.

One implementation runs TensorRT plans on a GPU; the tests and ``benchmarks/gpu_check.py`` have another, which
plays an engine with ONNX Runtime on the very same graph. B rows, C capacity, K kv heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Feeds = Mapping[str, np.ndarray]


class Memory(Protocol):
    """Keys and values of all layers for a number of rows, zeroed when made; freed with the object."""

    @property
    def rows(self) -> int:
        """How many rows it was made for."""
        ...

    def take_row(self, other: Any, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` slots of every layer from a row of this or another memory to a row."""
        ...

    def read_row(self, row: int, length: int) -> list[np.ndarray]:
        """Key and value of layer 0, of layer 1, ..., each [K, length, D]; bfloat16 comes as float32."""
        ...

    def write_row(self, row: int, arrays: Sequence[np.ndarray]) -> None:
        """Take over what ``read_row`` gave."""
        ...


class Engine(Protocol):
    """A loaded engine; one run at a time."""

    def allocate(self, rows: int) -> Memory:
        """Make room for rows of C slots; MemoryError where there is not enough."""
        ...

    def run(
        self, profile: int, feeds: Feeds, memory: Any = None, first_row: int = 0
    ) -> dict[str, np.ndarray]:
        """Run once; the caches are written in place.

        Args:
            profile: Index into the sidecar's ``profiles``.
            feeds: Every input but the caches, by name; the first axis of ``input_ids`` is B.
            memory: From ``allocate``; None where the engine has no cache.
            first_row: The first of the B rows of the memory that take part.

        Returns:
            Every output but the caches, by name; arrays of their own.
        """
        ...
