"""What every layer of one forward pass shares: computed once, before the first layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llama_export.model.config import LlamaConfig
from llama_export.model.rope import attention_factor, cos_sin, frequencies_for


class Step(NamedTuple):
    """Angles and visibility of one forward pass.

    Attributes:
        cos: [B, T, D / 2] float32.
        sin: [B, T, D / 2] float32.
        visible: [B, 1, T, S] bool: whether query t may look at slot s.
    """

    cos: Tensor
    sin: Tensor
    visible: Tensor


def make_step(
    attention_mask: Tensor,
    position_ids: Tensor,
    inv_freq: Tensor,
    config: LlamaConfig,
    lengths: Tensor | None = None,
) -> Step:
    """Turn the graph's inputs into what the layers need.

    Args:
        attention_mask: [B, S] int64: 1 for a token, 0 for padding, past included.
        position_ids: [B, T] int64: positions of the new tokens.
        inv_freq: What ``inverse_frequencies`` returns.
        config: The checkpoint's architecture.
        lengths: As for ``angles``.

    Returns:
        The step; its causal diagonal is lower-right: query t sits at slot S - T + t.
    """
    cos, sin = angles(position_ids, inv_freq, config, lengths)
    T, S = position_ids.shape[1], attention_mask.shape[1]
    slots = torch.arange(S, device=attention_mask.device)
    causal = slots <= slots[S - T :].unsqueeze(1)  # [T, S]
    visible = causal & (attention_mask != 0).unsqueeze(1).unsqueeze(1)  # [B, 1, T, S]
    return Step(cos, sin, visible)


def angles(
    position_ids: Tensor, inv_freq: Tensor, config: LlamaConfig, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine that rotate a step's new tokens.

    With ``dynamic`` and ``longrope`` they depend on how long the text is. What the cache holds stays
    rotated as it was.

    Args:
        position_ids: [B, T] int64.
        inv_freq: What ``inverse_frequencies`` returns.
        config: The checkpoint's architecture.
        lengths: [B, T or 1] int64, of the text that each token is rotated for; default ``text_lengths``.

    Returns:
        Two tensors [B, T, D / 2] float32.
    """
    if config.rope.depends_on_length:
        lengths = text_lengths(position_ids) if lengths is None else lengths
        inv_freq = frequencies_for(lengths, inv_freq, config)
    return cos_sin(position_ids, inv_freq, attention_factor(config))


def visible_slots(slots: Tensor, position_ids: Tensor) -> Tensor:
    """What the new tokens of unpadded rows see, where a slot's index is its token's position.

    Args:
        slots: [S] int64: indices of the slots that are read.
        position_ids: [B, T] int64.

    Returns:
        [B, 1, T, S] bool.
    """
    return slots <= position_ids.unsqueeze(-1).unsqueeze(1)


def text_lengths(position_ids: Tensor, at_least: Tensor | None = None) -> Tensor:
    """How long each row's text is: it ends with the last of the new tokens, if no more is to come.

    Args:
        position_ids: [B, T] int64.
        at_least: [1] int64: the length that it is known to have in the end.

    Returns:
        [B, 1] int64.
    """
    lengths = position_ids.amax(dim=1, keepdim=True) + 1
    return lengths if at_least is None else torch.maximum(lengths, at_least)


def positions(attention_mask: Tensor) -> Tensor:
    """Count the tokens before each slot: [B, S] mask of ones and zeros to [B, S] positions."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


class FusedStep(NamedTuple):
    """The same facts in the form that ``com.microsoft::GroupQueryAttention`` takes; exported graphs only.

    Attributes:
        cos: [context_length, D / 2] float32, the table of all positions; [B, T, D / 2], of the new tokens
            alone, where angles depend on the length of the text.
        sin: The same.
        seqlens_k: [B] int32: index of each row's last slot in use.
        total_length: [] int32: S.
        bias: [B, 1, T, S] float32: -1e9 on slots in front of a row's first token, else 0.
    """

    cos: Tensor
    sin: Tensor
    seqlens_k: Tensor
    total_length: Tensor
    bias: Tensor


def make_fused_step(attention_mask: Tensor, new_tokens: int, cos: Tensor, sin: Tensor) -> FusedStep:
    """Turn the graph's inputs into GroupQueryAttention's, right for padding on either side.

    A row's leading padding is kept in the cache but hidden by the bias; behind its last token nothing
    counts, because seqlens_k ends there. RoPE is relative, so a row that starts ``lead`` slots late needs
    no positions of its own, and GroupQueryAttention would read the first row's alone if it were given any.

    Args:
        attention_mask: [B, S] int64: 1 for a token, 0 for padding, past included.
        new_tokens: T.
        cos: As in ``FusedStep``.
        sin: As in ``FusedStep``.

    Returns:
        The step.
    """
    S = attention_mask.shape[1]
    seen = attention_mask.cumsum(dim=1)  # [B, S]; 0 on leading padding alone
    is_lead = seen == 0
    lead = is_lead.sum(dim=1)  # [B]
    seqlens_k = (lead + attention_mask.sum(dim=1) - 1).to(torch.int32)
    total_length = torch.full((), S, dtype=torch.int32)
    bias = (is_lead.float() * -1e9).unsqueeze(1).unsqueeze(1)  # [B, 1, 1, S]
    return FusedStep(cos, sin, seqlens_k, total_length, bias.expand(-1, 1, new_tokens, -1))
