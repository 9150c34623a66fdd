"""The keys and values of the positions a session has seen, and what is bound to them.

B rows, T new tokens, P past tokens, K kv heads, D head_dim, V vocabulary, C capacity.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_runtime.errors import PromptError, SessionError

if TYPE_CHECKING:
    from llama_runtime.manifest import Cache
    from llama_runtime.step import Step


@dataclass
class KVCache:
    """One conversation's cache; made by ``Session.new_cache``, used by one thread at a time.

    Attributes:
        rows: B.
        capacity: C, the most positions a row may hold.
        length: P, the positions that are valid now; what lies behind them is never read.
        offset: O, the positions in front of these that a learned prompt takes in every row; neither
            capacity nor length counts them.
        in_place: Whether the graph writes into ``tensors`` or returns longer ones.
        tensors: Key and value of layer 0, of layer 1, ...: NumPy arrays [B, K, O + C, D] in place,
            OrtValues [B, K, O + P, D] when growing.
        step: What the last run had bound; the next run of the same shape uses it again.
    """

    rows: int
    capacity: int
    in_place: bool
    tensors: list[Any]
    length: int = 0
    offset: int = 0
    step: Step | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the cache for one run; SessionError where another thread holds it."""
        if not self._lock.acquire(blocking=False):
            hint = "give every thread a cache of its own; the session may be shared"
            raise SessionError("the cache is in use by another thread", hint)
        try:
            yield
        finally:
            self._lock.release()

    def require_room(self, tokens: int) -> None:
        """Raise PromptError unless ``tokens`` more positions fit; a write beyond C would corrupt a row."""
        if self.length + tokens > self.capacity:
            raise PromptError(
                f"{tokens} more tokens after {self.length}, the cache has room for {self.capacity}",
                "open the cache with a larger capacity",
            )

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` positions; in place nothing moves: what lies behind is never read."""
        if not self.in_place:
            # Their own lengths, not ours: a run that was interrupted may have left longer ones.
            self.tensors = [_first_positions(tensor, self.offset + length) for tensor in self.tensors]
        self.length = length

    def enlarge(self, capacity: int) -> None:
        """Make room for ``capacity`` positions, keeping those that are valid."""
        if self.in_place:
            smaller, self.tensors, valid = self.tensors, [], self.offset + self.length
            for old in smaller:
                new = np.zeros((*old.shape[:2], self.offset + capacity, old.shape[3]), old.dtype)
                new[:, :, :valid] = old[:, :, :valid]
                self.tensors.append(new)
        self.capacity, self.step = capacity, None

    def arrays(self) -> list[np.ndarray]:
        """``tensors`` as NumPy arrays, shared in place and copied when growing."""
        return [tensor if isinstance(tensor, np.ndarray) else tensor.numpy() for tensor in self.tensors]

    def select_rows(self, rows: Sequence[int]) -> None:
        """Make row i what row ``rows[i]`` is now; another number of rows makes the cache anew."""
        L = self.offset + self.length
        if self.in_place and len(rows) == self.rows:
            for tensor in self.tensors:
                tensor[:, :, :L] = tensor[rows, :, :L]
            return
        arrays = self.arrays()
        if self.in_place:
            self.tensors = [np.zeros((len(rows), *array.shape[1:]), array.dtype) for array in arrays]
            for new, old in zip(self.tensors, arrays, strict=True):
                new[:, :, :L] = old[rows, :, :L]
        else:
            self.tensors = [array[rows] for array in arrays]  # [B, K, P, D]
        self.rows, self.step = len(rows), None

    def view(self, first: int, rows: int) -> KVCache:
        """Some of the rows of a cache in place, in the same memory, with a length of their own."""
        tensors = [tensor[first : first + rows] for tensor in self.tensors]
        return KVCache(rows, self.capacity, True, tensors, offset=self.offset)

    def move_to(self, view: KVCache) -> None:
        """Stand where another view of the same memory stands."""
        self.tensors, self.step = view.tensors, None

    def move_row(self, source: int, target: int, length: int) -> None:
        """Copy a row's first ``length`` positions to another row of a cache in place."""
        for tensor in self.tensors:
            tensor[target, :, : self.offset + length] = tensor[source, :, : self.offset + length]

    def read_row(self, length: int) -> list[np.ndarray]:
        """Copy the first row: key and value of layer 0, of layer 1, ..., each [K, length, D]."""
        end = self.offset + length
        return [np.ascontiguousarray(array[0, :, self.offset : end]) for array in self.arrays()]

    def write_row(self, arrays: Sequence[np.ndarray]) -> None:
        """Fill the only row with what ``read_row`` gave."""
        if self.in_place:
            for tensor, array in zip(self.tensors, arrays, strict=True):
                tensor[0, :, self.offset : self.offset + array.shape[1]] = array
        else:
            learned = self.arrays()
            self.tensors = [
                np.concatenate((front, array[None]), axis=2)
                for front, array in zip(learned, arrays, strict=True)
            ]


def empty_cache(shape: Cache, rows: int, capacity: int, soft_prompt: Sequence[np.ndarray] = ()) -> KVCache:
    """Make a cache without positions of a text.

    Args:
        shape: The manifest's ``cache``.
        rows: B.
        capacity: C; memory is allocated for all of it only in place, and touched as it fills.
        soft_prompt: Keys and values that every row begins with, [K, O, D] each.
    """
    offset = soft_prompt[0].shape[1] if soft_prompt else 0
    length = offset + (capacity if shape.in_place else 0)
    dims = (rows, shape.num_key_value_heads, length, shape.head_dim)
    tensors = [np.zeros(dims, shape.dtype) for _ in range(2 * shape.num_hidden_layers)]
    for tensor, learned in zip(tensors, soft_prompt, strict=False):
        tensor[:, :, :offset] = learned
    return KVCache(rows, capacity, shape.in_place, tensors, offset=offset)


def _first_positions(tensor: Any, length: int) -> Any:
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor[:, :, :length])
    return tensor if tensor.shape()[2] == length else np.ascontiguousarray(tensor.numpy()[:, :, :length])


def position_bytes(shape: Cache) -> int:
    """Memory of one position of one row, keys and values of all layers."""
    values = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    return values * np.dtype(shape.dtype).itemsize


def cache_names(shape: Cache) -> tuple[list[str], list[str]]:
    """Names of the past inputs and of the present outputs, in the order of ``KVCache.tensors``."""
    layers = range(shape.num_hidden_layers)
    past = [name.replace("{i}", str(i)) for i in layers for name in (shape.key_name, shape.value_name)]
    present_names = (shape.present_key_name, shape.present_value_name)
    present = [name.replace("{i}", str(i)) for i in layers for name in present_names]
    return past, present
