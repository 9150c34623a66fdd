"""Scales of a cache of 8-bit keys and values: one for each channel of a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llama_export.model import GrowingCache, LlamaConfig
from llama_export.model.layer import DecoderLayer
from llama_export.model.rope import attention_factor
from llama_export.quantize.reading import Read, read_layers

# Another text may hold larger values than the one that was read. Cutting them off costs far more than steps
# twice as large: with a text of another kind, a KL divergence of 5e-4 at 1.15, of 2e-5 at 1.9
# (benchmarks/LOG.md). Not 2: the largest value would stand at the very edge of two codes.
_HEADROOM = 1.9
_SMALLEST = 1e-6


@dataclass(frozen=True)
class CacheScales:
    """Of one layer, [K, D] float32 each: a code is a value over its scale, rounded, of -128 to 127."""

    keys: Tensor
    values: Tensor


def cache_scales(config: LlamaConfig, read: Read, windows: Sequence[Sequence[int]]) -> list[CacheScales]:
    """Find the scales of every layer by having the model read a text.

    A key is rotated by its position: what a channel may hold anywhere is the length of the pair that is
    rotated together, so the two channels of a pair share a scale.

    Args:
        config: The architecture.
        read: As for ``read_layers``.
        windows: Token ids of the text.
    """
    K, D = config.num_key_value_heads, config.head_dim
    found, largest = list[CacheScales](), dict[str, Tensor]()

    def watch(layer: DecoderLayer) -> None:
        largest.clear()
        largest.update(keys=torch.zeros(K, D // 2), values=torch.zeros(K, D))

        def keys(module: nn.Module, inputs: object, output: Tensor) -> None:
            pairs = output.detach().view(-1, K, 2, D // 2).square().sum(2).sqrt()  # [T, K, D / 2]
            torch.maximum(largest["keys"], pairs.amax(0), out=largest["keys"])

        def values(module: nn.Module, inputs: object, output: Tensor) -> None:
            heads = output.detach().view(-1, K, D).abs()
            torch.maximum(largest["values"], heads.amax(0), out=largest["values"])

        layer.self_attn.k_proj.register_forward_hook(keys)
        layer.self_attn.v_proj.register_forward_hook(values)

    for _ in read_layers(config, read, windows, watch):
        rotated = largest["keys"] * attention_factor(config)
        found.append(CacheScales(_scale(torch.cat((rotated, rotated), dim=1)), _scale(largest["values"])))
    return found


def _scale(largest: Tensor) -> Tensor:
    return (largest * (_HEADROOM / 127)).clamp(min=_SMALLEST)


class RoundedCache(GrowingCache):
    """A cache of one layer that gives back what its 8-bit codes hold.

    Args:
        scales: Of the layer.
    """

    def __init__(self, scales: CacheScales) -> None:
        super().__init__()
        self._scales = scales

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As ``GrowingCache`` does; [B, K, T, D] keys and values are rounded on their way in."""
        keys, values = _rounded(keys, self._scales.keys), _rounded(values, self._scales.values)
        return super().append(layer, keys, values)


def _rounded(values: Tensor, scales: Tensor) -> Tensor:
    by = scales[:, None]  # [K, 1, D]
    return (values * by.reciprocal()).round().clamp(-128, 127) * by


MakeCache = Callable[[int], GrowingCache]
"""From a layer's number to its empty cache."""


def float_cache(layer: int) -> GrowingCache:
    """A cache that keeps what it is given."""
    return GrowingCache()
