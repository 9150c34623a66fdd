"""Key/value caches. Attention appends to one and never knows which kind it has."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from llama_export.errors import OptionError
from llama_export.model.config import LlamaConfig


class KVCache(Protocol):
    """Keys and values of the tokens seen so far, one pair of tensors a layer."""

    @property
    def length(self) -> int:
        """P: slots in use, counted before the step that is running."""
        ...

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add [B, K, T, D] keys and values to a layer; return all [B, K, S, D] of it."""
        ...


class GrowingCache:
    """A cache that is concatenated at every step: the contract of the eager and sdpa graphs."""

    def __init__(self, keys: list[Tensor] | None = None, values: list[Tensor] | None = None) -> None:
        self.keys = keys or []
        self.values = values or []

    @property
    def length(self) -> int:
        """P: slots in use; every layer has the same number once a step is complete."""
        return self.keys[-1].shape[2] if self.keys else 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add [B, K, T, D] keys and values to a layer; return all [B, K, S, D] of it."""
        if layer == len(self.keys):
            self.keys.append(keys)
            self.values.append(values)
        else:
            self.keys[layer] = torch.cat((self.keys[layer], keys), dim=2)
            self.values[layer] = torch.cat((self.values[layer], values), dim=2)
        return self.keys[layer], self.values[layer]


class StaticCache:
    """A cache of fixed capacity that is written in place: nothing is allocated while decoding.

    Args:
        config: The checkpoint's architecture.
        rows: B.
        capacity: Smax, slots to allocate.
        dtype: Of keys and values.
        device: Where they live.
    """

    def __init__(
        self,
        config: LlamaConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, K, T, D] keys and values behind a layer's slots; return views [B, K, S, D] of all.

        Raises:
            OptionError: The step does not fit the capacity; nothing is written.
        """
        start, end = self.length, self.length + keys.shape[2]
        capacity = self.keys.shape[3]
        if end > capacity:
            raise OptionError(f"the cache holds {capacity} tokens, this step needs {end}")
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        # The step ends with the last layer; only then do all layers agree on the new length.
        if layer == len(self.keys) - 1:
            self.length = end
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
