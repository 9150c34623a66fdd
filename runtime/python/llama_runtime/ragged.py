"""Rows of unequal length in one cache, decoded together; a row may join or leave between two tokens.

B rows, K kv heads, C capacity, D head_dim, W width: positions of the longest row. A learned prompt stands
in front of each row and moves with it; no length counts it. Two layouts, as the
graph's cache is: in place, rows begin together and nothing is ever padded; growing, rows end together
behind a padding that the mask hides.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from llama_runtime.cache import KVCache
from llama_runtime.session import Session


class RaggedRows(Protocol):
    """Rows that advance together.

    Attributes:
        lengths: Positions that each row holds.
    """

    lengths: list[int]

    def new_row(self) -> KVCache:
        """A cache of one row to prefill; one at a time, until it joins or is dropped."""

    def join(self, row: KVCache) -> None:
        """Take the prefilled row in, behind the others."""

    def leave(self, index: int) -> None:
        """Drop a row; the last one takes its place."""

    def decode(self, token_ids: list[int]) -> np.ndarray:
        """Read one token a row: [B] -> [B, V] float32."""


def ragged_rows(session: Session, rows: int, capacity: int) -> RaggedRows:
    """Make room for rows.

    Args:
        session: Its graph says which layout.
        rows: The most at a time.
        capacity: C, the most positions of each.
    """
    layout = InPlaceRows if session.manifest.kv_cache.in_place else GrowingRows
    return layout(session, rows, capacity)


class InPlaceRows:
    """One buffer [rows, K, C, D]; the first B of its rows run, the next one may be being prefilled."""

    def __init__(self, session: Session, rows: int, capacity: int) -> None:
        self.lengths: list[int] = []
        self._session = session
        self._buffer = session.new_cache(rows=rows, capacity=capacity)
        # Views of the first B rows, each with its bindings.
        self._views: dict[int, KVCache] = {}
        self._joining: KVCache | None = None

    def new_row(self) -> KVCache:
        """A view of the first row that does not run."""
        self._joining = self._buffer.view(len(self.lengths), 1)
        return self._joining

    def join(self, row: KVCache) -> None:
        """The row runs from now on, where it is."""
        self.lengths.append(row.length)
        self._joining = None

    def leave(self, index: int) -> None:
        """Move the last row into the gap, and a row that is being prefilled behind it."""
        last = len(self.lengths) - 1
        self._move(last, index, self.lengths[last])
        self.lengths[index] = self.lengths[last]
        self.lengths.pop()
        if self._joining is not None:
            self._move(last + 1, last, self._joining.length)
            self._joining.move_to(self._buffer.view(last, 1))

    def decode(self, token_ids: list[int]) -> np.ndarray:
        """Read one token a row: [B] -> [B, V] float32."""
        B = len(self.lengths)
        if B not in self._views:
            self._views[B] = self._buffer.view(0, B)
        view = self._views[B]
        lengths = np.array(self.lengths, np.int64)
        view.length = max(self.lengths)
        logits = self._session.decode(np.array(token_ids, np.int64), view, lengths)
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def _move(self, source: int, target: int, length: int) -> None:
        if source != target:
            self._buffer.move_row(source, target, length)


class GrowingRows:
    """One cache [B, K, W, D] that every run returns anew; it is laid out again when a row joins or leaves."""

    def __init__(self, session: Session, rows: int, capacity: int) -> None:
        self.lengths: list[int] = []
        self._session, self._capacity = session, capacity
        self._cache = session.new_cache(rows=rows, capacity=capacity)

    def new_row(self) -> KVCache:
        """A cache of its own."""
        return self._session.new_cache(capacity=self._capacity)

    def join(self, row: KVCache) -> None:
        """Copy the row in, behind the others."""
        rows = [*self._rows(), row.arrays()]
        self.lengths.append(row.length)
        self._lay_out(rows)

    def leave(self, index: int) -> None:
        """Copy the others together."""
        rows = self._rows()
        rows[index], self.lengths[index] = rows[-1], self.lengths[-1]
        rows.pop()
        self.lengths.pop()
        if rows:
            self._lay_out(rows)

    def decode(self, token_ids: list[int]) -> np.ndarray:
        """Read one token a row: [B] -> [B, V] float32."""
        lengths = np.array(self.lengths, np.int64)
        logits = self._session.decode(np.array(token_ids, np.int64), self._cache, lengths)
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def _rows(self) -> list[list[np.ndarray]]:
        """Each row's own positions, the learned prompt's included, for each tensor."""
        arrays, offset = self._cache.arrays() if self.lengths else [], self._cache.offset
        return [
            [array[i : i + 1, :, array.shape[2] - offset - length :] for array in arrays]
            for i, length in enumerate(self.lengths)
        ]

    def _lay_out(self, rows: list[list[np.ndarray]]) -> None:
        offset, tensors = self._cache.offset, []
        W = offset + max(self.lengths)
        for parts in zip(*rows, strict=True):
            _, K, _, D = parts[0].shape
            tensor = np.zeros((len(parts), K, W, D), parts[0].dtype)
            for i, part in enumerate(parts):
                tensor[i, :, W - part.shape[2] :] = part[0]
            tensors.append(tensor)
        self._cache = KVCache(len(rows), self._capacity, False, tensors, W - offset, offset)
