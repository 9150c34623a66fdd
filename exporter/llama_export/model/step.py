"""What every layer of one forward pass shares: computed once, before the first layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llama_export.model.rope import cos_sin


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


def make_step(attention_mask: Tensor, position_ids: Tensor, inv_freq: Tensor) -> Step:
    """Turn the graph's inputs into what the layers need.

    Args:
        attention_mask: [B, S] int64: 1 for a token, 0 for padding, past included.
        position_ids: [B, T] int64: positions of the new tokens.
        inv_freq: [D / 2] float32.

    Returns:
        The step; its causal diagonal is lower-right: query t sits at slot S - T + t.
    """
    cos, sin = cos_sin(position_ids, inv_freq)
    T, S = position_ids.shape[1], attention_mask.shape[1]
    slots = torch.arange(S, device=attention_mask.device)
    causal = slots <= slots[S - T :].unsqueeze(1)  # [T, S]
    visible = causal & (attention_mask != 0).unsqueeze(1).unsqueeze(1)  # [B, 1, T, S]
    return Step(cos, sin, visible)


class FusedStep(NamedTuple):
    """The same facts in the form that ``com.microsoft::GroupQueryAttention`` takes; exported graphs only.

    Attributes:
        cos: [max_position_embeddings, D / 2] float32, the table of all positions.
        sin: [max_position_embeddings, D / 2] float32.
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
        cos: [max_position_embeddings, D / 2] float32.
        sin: [max_position_embeddings, D / 2] float32.

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
