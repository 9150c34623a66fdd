"""The model cut into the parts of a TensorRT engine's graph, in the dtype that it computes in.

A language model's are its own: the cache has a fixed capacity and rows are never padded. The task heads'
are those of ``parts``, which read whole texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_export.graph import parts
from llama_export.graph.contract import BATCH, ROPE_LENGTH, SEQUENCE, Dims
from llama_export.graph.parts import Part
from llama_export.graph.static_contract import (
    BUCKET,
    KV_BUCKET,
    LAST_HIDDEN_STATE,
    WRITE_INDICES,
    cache_shape,
)
from llama_export.model.config import LlamaConfig
from llama_export.model.fused import ScatteredCache
from llama_export.model.layer import DecoderLayer, RMSNorm
from llama_export.model.rope import inverse_frequencies
from llama_export.model.step import Step, angles, text_lengths, visible_slots

# Hidden states cross from part to part in the engine's dtype; angles stay float32.
_STATES = ("hidden", "last_hidden_state")


def static_parts(
    config: LlamaConfig, dtype: torch.dtype, capacity: int, last_hidden_state: bool = False
) -> list[Part]:
    """Prologue, decoder layer and whatever is behind the last layer, in this order.

    Args:
        config: The checkpoint's architecture.
        dtype: Of weights, hidden states and cache.
        capacity: C, slots of the cache, and rows of the table of angles.
        last_hidden_state: Of a language model, give that of all tokens too.
    """
    if config.generates:
        made = [_prologue(config, capacity), _layer(config, dtype, capacity)]
        made.append(_states_head(config) if last_hidden_state else _head(config))
    else:
        made = [parts.prologue(config, "sdpa"), parts.decoder_layer(config, "sdpa"),
                parts.norm(config, "sdpa"), *parts.head(config)]  # fmt: skip
    return [_typed(part, dtype) for part in made]


def _typed(part: Part, dtype: torch.dtype) -> Part:
    """The same part with weights and hidden states of another dtype."""

    def build() -> nn.Module:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return part.build()
        finally:
            torch.set_default_dtype(before)

    inputs = {name: (dims, dtype if name in _STATES else own) for name, (dims, own) in part.inputs.items()}
    return replace(part, build=build, inputs=inputs)


def _step_tensors(config: LlamaConfig) -> dict[str, tuple[Dims, torch.dtype]]:
    half: Dims = (BATCH, SEQUENCE, config.head_dim // 2)
    return {
        "cos": (half, torch.float32),
        "sin": (half, torch.float32),
        "visible": ((BATCH, 1, SEQUENCE, BUCKET), torch.bool),
    }


class _TablePrologue(nn.Module):
    """Embeds the tokens, looks their angles up and says what they see."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, slots: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, ...]:
        cos, sin = (F.embedding(position_ids, table) for table in (cos, sin))
        return self.embed_tokens(input_ids), *Step(cos, sin, visible_slots(slots, position_ids))


class _AnglesPrologue(nn.Module):
    """The same with angles computed for the length of the text."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, slots: Tensor, inv_freq: Tensor, rope_length: Tensor
    ) -> tuple[Tensor, ...]:
        lengths = text_lengths(position_ids, rope_length)
        cos, sin = angles(position_ids, inv_freq, self.config, lengths)
        return self.embed_tokens(input_ids), *Step(cos, sin, visible_slots(slots, position_ids))


def _prologue(config: LlamaConfig, capacity: int) -> Part:
    tokens = (BATCH, SEQUENCE), torch.int64
    inputs: dict[str, tuple[Dims, torch.dtype]] = {
        "input_ids": tokens,
        "position_ids": tokens,
        "slots": ((BUCKET,), torch.int64),
    }
    outputs = ("hidden", *_step_tensors(config))
    if config.rope.depends_on_length:
        inputs["inv_freq"] = tuple(inverse_frequencies(config).shape), torch.float32
        inputs["rope_length"] = ROPE_LENGTH.shape, torch.int64
        return Part(lambda: _AnglesPrologue(config), inputs, outputs)
    table: Dims = (capacity, config.head_dim // 2)
    inputs |= {"cos": (table, torch.float32), "sin": (table, torch.float32)}
    return Part(lambda: _TablePrologue(config), inputs, outputs)


class _CachedLayer(nn.Module):
    """One decoder layer over its cache."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.layer = DecoderLayer(config, 0, "sdpa")

    def forward(
        self,
        hidden: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        write_indices: Tensor,
        kv_bucket: Tensor,
        *step: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shared = Step(*step)
        cache = ScatteredCache(past_key, past_value, write_indices, kv_bucket, shared.visible.shape[-1])
        out = self.layer(hidden.flatten(0, 1), shared, cache)
        return out.view(hidden.shape), cache.keys, cache.values


def _layer(config: LlamaConfig, dtype: torch.dtype, capacity: int) -> Part:
    cache = cache_shape(config, capacity), dtype
    inputs: dict[str, tuple[Dims, torch.dtype]] = {
        "hidden": ((BATCH, SEQUENCE, config.hidden_size), dtype),
        "past_key": cache,
        "past_value": cache,
        "write_indices": (WRITE_INDICES.shape, torch.int64),
        "kv_bucket": (KV_BUCKET.shape, torch.int64),
        **_step_tensors(config),
    }
    return Part(lambda: _CachedLayer(config), inputs, ("hidden", "present_key", "present_value"))


class _LastTokenHead(nn.Module):
    """Final norm and head of each row's last token alone."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config, "sdpa")
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(hidden[:, -1]))  # [B, V]
        return logits


def _head(config: LlamaConfig) -> Part:
    inputs: dict[str, tuple[Dims, torch.dtype]] = {
        "hidden": ((BATCH, SEQUENCE, config.hidden_size), torch.float32)
    }
    return Part(lambda: _LastTokenHead(config), inputs, ("logits",))


class _StatesHead(_LastTokenHead):
    """Final norm of all tokens, and the head of each row's last one."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        states = self.norm(hidden.flatten(0, 1)).view(hidden.shape)
        return self.lm_head(states[:, -1]), states  # [B, V], [B, T, hidden_size]


def _states_head(config: LlamaConfig) -> Part:
    head = _head(config)
    return replace(head, build=lambda: _StatesHead(config), outputs=("logits", LAST_HIDDEN_STATE))


def weight_namer(index: int) -> Callable[[str], str]:
    """From a layer's weight names in its part to the checkpoint's."""
    return lambda name: name.replace("layer", f"model.layers.{index}", 1)
