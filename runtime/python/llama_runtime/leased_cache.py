"""A cache in a device's memory, which is lent: to the cache and its views, and to the next one after them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llama_runtime.cache import KVCache
from llama_runtime.engine import Memory


class Lease:
    """Memory that is somebody's; when nobody holds the lease any more, the next one gets it."""

    def __init__(self, memory: Memory, idle: list[Memory]) -> None:
        self.memory = memory
        weakref.finalize(self, idle.append, memory)


@dataclass
class LeasedCache(KVCache):
    """Rows of a device's memory, all of their slots; nothing moves when the cache shrinks.

    Attributes:
        session: Where its memory comes from: an object with ``lease`` and ``soft_prompt``.
        lease: Of the memory, which views of this cache share.
        first_row: The first of the memory's rows that is this cache's.
    """

    session: Any = field(kw_only=True, repr=False)
    lease: Lease = field(kw_only=True, repr=False)
    first_row: int = field(default=0, kw_only=True)

    def enlarge(self, capacity: int) -> None:
        """An engine's rows have all slots already."""
        self.capacity = capacity

    def arrays(self) -> list[np.ndarray]:
        """Copies of all rows' valid positions: [B, K, O + P, D] for each tensor."""
        memory, end = self.lease.memory, self.offset + self.length
        rows = [memory.read_row(self.first_row + row, end) for row in range(self.rows)]
        return [np.stack(parts) for parts in zip(*rows, strict=True)]

    def select_rows(self, rows: Sequence[int]) -> None:
        """Make row i what row ``rows[i]`` is now, in other memory, since rows may change places."""
        lease, end = self.session.lease(len(rows), self.capacity), self.offset + self.length
        for target, source in enumerate(rows):
            lease.memory.take_row(self.lease.memory, self.first_row + source, target, end)
        self.rows, self.first_row, self.lease = len(rows), 0, lease

    def view(self, first: int, rows: int) -> LeasedCache:
        """Some of the rows, in the same memory, with a length of their own."""
        return type(self)(
            rows, self.capacity, True, [], offset=self.offset,
            session=self.session, lease=self.lease, first_row=self.first_row + first,
        )  # fmt: skip

    def move_to(self, view: KVCache) -> None:
        """Stand where another view of the same memory stands."""
        assert isinstance(view, LeasedCache)
        self.first_row = view.first_row

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy a row's first ``length`` positions to another row."""
        memory, end = self.lease.memory, self.offset + length
        memory.take_row(memory, self.first_row + source, self.first_row + target, end)

    def read_row(self, length: int) -> list[np.ndarray]:
        """Copy the first row: key and value of layer 0, of layer 1, ..., each [K, length, D]."""
        whole = self.lease.memory.read_row(self.first_row, self.offset + length)
        return [np.ascontiguousarray(array[:, self.offset :]) for array in whole]

    def write_row(self, arrays: Sequence[np.ndarray]) -> None:
        """Fill the only row with what ``read_row`` gave."""
        learned = self.session.soft_prompt
        if learned:
            arrays = [np.concatenate(pair, axis=1) for pair in zip(learned, arrays, strict=True)]
        self.lease.memory.write_row(self.first_row, arrays)
