"""The model cut into the parts that are traced once each: prologue, decoder layer, norm, head.

A part says which tensors it takes, with their dims by name, so that one place knows how to trace them all.
Hidden states cross from part to part as [B, T, hidden_size]; the flattening on either side of a seam
cancels in ``passes/reshape.py``. A task head sees whole texts: its parts have no past, and S is T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llama_export.graph.contract import (
    BATCH,
    LOGITS,
    NO_EXTRAS,
    PAST,
    ROPE_LENGTH,
    SEQUENCE,
    TOTAL,
    Dims,
    Extras,
    head_outputs,
)
from llama_export.model.attention import AttentionPath, recording_attention
from llama_export.model.cache import GrowingCache
from llama_export.model.config import LlamaConfig
from llama_export.model.heads import HEADS
from llama_export.model.layer import DecoderLayer, RMSNorm
from llama_export.model.rope import inverse_frequencies
from llama_export.model.step import (
    FusedStep,
    Step,
    angles,
    make_fused_step,
    make_step,
    positions,
    text_lengths,
)


@dataclass(frozen=True)
class Part:
    """One piece of the model, ready to be traced.

    Attributes:
        build: Makes the module; called under fake tensors, so that no weight is allocated.
        inputs: Name to dims and dtype, in the order of the module's arguments.
        outputs: Names of what it returns.
    """

    build: Callable[[], nn.Module]
    inputs: dict[str, tuple[Dims, torch.dtype]]
    outputs: tuple[str, ...]


def step_tensors(config: LlamaConfig, path: AttentionPath) -> dict[str, tuple[Dims, torch.dtype]]:
    """What the prologue computes for all layers, in the order of the step's fields."""
    half, total = config.head_dim // 2, _total(config)
    per_token: Dims = (BATCH, SEQUENCE, half)
    if path == "flash":
        table: Dims = per_token if config.rope.depends_on_length else (config.context_length, half)
        return {
            "cos": (table, torch.float32),
            "sin": (table, torch.float32),
            "seqlens_k": ((BATCH,), torch.int32),
            "total_length": ((), torch.int32),
            "bias": ((BATCH, 1, SEQUENCE, total), torch.float32),
        }
    return {
        "cos": (per_token, torch.float32),
        "sin": (per_token, torch.float32),
        "visible": ((BATCH, 1, SEQUENCE, total), torch.bool),
    }


def _total(config: LlamaConfig) -> str:
    """S by name: without a past it is T."""
    return TOTAL if config.generates else SEQUENCE


class _Prologue(nn.Module):
    """Embeds the tokens, unless they come as embeddings, and computes the step."""

    def __init__(self, config: LlamaConfig, embeds: bool) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size) if embeds else None

    def embedded(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """[B, T] ids to one tensor [B, T, hidden_size]; embeddings to none, since the graph has them."""
        return () if self.embed_tokens is None else (self.embed_tokens(tokens),)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        inv_freq: Tensor,
        position_ids: Tensor | None = None,
        rope_length: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        if position_ids is None:
            position_ids = positions(attention_mask)
        lengths = text_lengths(position_ids, rope_length)
        step = make_step(attention_mask, position_ids, inv_freq, self.config, lengths)
        return *self.embedded(tokens), *step


class _FusedPrologue(_Prologue):
    """Embeds the tokens and computes the step that GroupQueryAttention takes with its table of angles."""

    def forward(  # type: ignore[override]
        self, tokens: Tensor, attention_mask: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, ...]:
        step = make_fused_step(attention_mask, tokens.shape[1], cos, sin)
        return *self.embedded(tokens), step.seqlens_k, step.total_length, step.bias


class _FusedAnglesPrologue(_Prologue):
    """The same with angles of the new tokens alone, computed for the length of the text."""

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        inv_freq: Tensor,
        position_ids: Tensor | None = None,
        rope_length: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        if position_ids is None:
            position_ids = positions(attention_mask)
        lengths = text_lengths(position_ids, rope_length)
        cos, sin = angles(position_ids, inv_freq, self.config, lengths)
        step = make_fused_step(attention_mask, tokens.shape[1], cos, sin)
        return *self.embedded(tokens), *step


def prologue(config: LlamaConfig, path: AttentionPath, extras: Extras = NO_EXTRAS) -> Part:
    """The part before the first layer; its rotary tables are inputs, so that they stay initializers.

    With embeddings as input it leaves ``hidden`` out of its outputs: they are it.
    """
    int64, embeds = torch.int64, not extras.inputs_embeds
    tokens = ((BATCH, SEQUENCE), int64) if embeds else _hidden(config, SEQUENCE)
    inputs: dict[str, tuple[Dims, torch.dtype]] = {
        "input_ids" if embeds else "inputs_embeds": tokens,
        "attention_mask": ((BATCH, _total(config)), int64),
    }
    hidden = ("hidden",) * embeds
    step = step_tensors(config, path)
    if path == "flash" and not config.rope.depends_on_length:
        inputs |= {name: step[name] for name in ("cos", "sin")}
        outputs = (*hidden, "seqlens_k", "total_length", "bias")
        return Part(lambda: _FusedPrologue(config, embeds), inputs, outputs)
    inputs["inv_freq"] = (tuple(inverse_frequencies(config).shape), torch.float32)
    if config.generates:
        inputs["position_ids"] = ((BATCH, SEQUENCE), int64)
    if config.generates and config.rope.depends_on_length:
        inputs["rope_length"] = ROPE_LENGTH.shape, int64
    module = _FusedAnglesPrologue if path == "flash" else _Prologue
    return Part(lambda: module(config, embeds), inputs, (*hidden, *step))


class _Layer(nn.Module):
    """One decoder layer over whole texts."""

    def __init__(self, config: LlamaConfig, path: AttentionPath) -> None:
        super().__init__()
        self.layer = DecoderLayer(config, 0, path)
        self.step = FusedStep if path == "flash" else Step

    def forward(self, hidden: Tensor, *step: Tensor) -> Tensor:
        out: Tensor = self.layer(hidden.flatten(0, 1), self.step(*step), GrowingCache())
        return out.view(hidden.shape)


class _CachedLayer(_Layer):
    """One decoder layer over explicit past tensors."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, past_key: Tensor, past_value: Tensor, *step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        cache = GrowingCache([past_key], [past_value])
        out = self.layer(hidden.flatten(0, 1), self.step(*step), cache)
        return out.view(hidden.shape), cache.keys[0], cache.values[0]


class _WatchedLayer(_CachedLayer):
    """The same, on the eager path, with the attention weights as one more output."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, past_key: Tensor, past_value: Tensor, *step: Tensor
    ) -> tuple[Tensor, ...]:
        seen: list[Tensor] = []
        self.layer.self_attn.attend = recording_attention(seen)
        return *super().forward(hidden, past_key, past_value, *step), *seen


def decoder_layer(config: LlamaConfig, path: AttentionPath, extras: Extras = NO_EXTRAS) -> Part:
    """One decoder layer; the graph holds ``num_hidden_layers`` copies of its trace."""
    inputs: dict[str, tuple[Dims, torch.dtype]] = {"hidden": _hidden(config, SEQUENCE)}
    if not config.generates:
        return Part(lambda: _Layer(config, path), inputs | step_tensors(config, path), ("hidden",))
    past = (BATCH, config.num_key_value_heads, PAST, config.head_dim), torch.float32
    inputs |= {"past_key": past, "past_value": past} | step_tensors(config, path)
    outputs = ("hidden", "present_key", "present_value")
    if extras.attentions:
        return Part(lambda: _WatchedLayer(config, path), inputs, (*outputs, "attentions"))
    return Part(lambda: _CachedLayer(config, path), inputs, outputs)


def _hidden(config: LlamaConfig, length: str) -> tuple[Dims, torch.dtype]:
    return (BATCH, length, config.hidden_size), torch.float32


class _Norm(nn.Module):
    """Final norm."""

    def __init__(self, config: LlamaConfig, path: AttentionPath) -> None:
        super().__init__()
        self.norm = RMSNorm(config, path)

    def forward(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.norm(hidden.flatten(0, 1))
        return normed.view(hidden.shape)


def norm(config: LlamaConfig, path: AttentionPath) -> Part:
    """The part behind the last layer."""
    return Part(lambda: _Norm(config, path), {"hidden": _hidden(config, SEQUENCE)}, ("last_hidden_state",))


class _LanguageModelHead(nn.Module):
    """Predicts the token after each kept one."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, last_hidden_state: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(last_hidden_state.flatten(0, 1))  # [N, V]
        return logits.view(*last_hidden_state.shape[:2], -1)


def head(config: LlamaConfig) -> list[Part]:
    """The part that gives the outputs, over kept tokens or whole texts; none where those of norm are they."""
    if config.head.task == "feature-extraction":
        return []
    if config.generates:
        inputs = {"last_hidden_state": _hidden(config, LOGITS)}
        return [Part(lambda: _LanguageModelHead(config), inputs, ("logits",))]
    texts = (BATCH, SEQUENCE), torch.int64
    inputs = {
        "last_hidden_state": _hidden(config, SEQUENCE),
        "input_ids": texts,
        "attention_mask": texts,
    }
    names = tuple(spec.name for spec in head_outputs(config))
    return [Part(lambda: HEADS[config.head.task](config), inputs, names)]
