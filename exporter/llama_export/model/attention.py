"""Causal attention, three ways, behind one signature: all equal to ``eager``.

    eager   written out with a float32 softmax: the reference that every other path is compared with
    sdpa    ``scaled_dot_product_attention`` with an explicit mask: one standard node when exported
    flash   the flash kernel, which knows no mask: padded rows are packed to their tokens first

Each takes rotated queries and keys and returns 0 where a query may see nothing, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llama_export.model.step import Step

AttentionPath = Literal["eager", "sdpa", "flash"]
ATTENTION_PATHS: tuple[AttentionPath, ...] = get_args(AttentionPath)
Attend = Callable[[Tensor, Tensor, Tensor, Step], Tensor]
"""Queries, keys, values and step to context; shapes as in ``eager_attention``."""


def eager_attention(query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
    """Attend, written out so that each step can be read.

    Scores and softmax are float32 whatever the input dtype.

    Args:
        query: [B, H, T, D], rotated; the last T of the S slots.
        keys: [B, K, S, D], rotated.
        values: [B, K, S, D].
        step: Its ``visible`` says which slots each query sees.

    Returns:
        [B, H, T, D] in the dtype of ``query``.
    """
    return _weigh(attention_weights(query, keys, step), values, query)


def attention_weights(query: Tensor, keys: Tensor, step: Step) -> Tensor:
    """How much each query takes from each slot: [B, K, G, T, S] float32, G query heads for each key head."""
    B, H, T, D = query.shape
    K = keys.shape[1]
    grouped = query.float().reshape(B, K, H // K, T, D)  # [B, K, G, T, D]
    scores = grouped @ keys.float().unsqueeze(2).mT * D**-0.5  # [B, K, G, T, S]
    visible = step.visible.unsqueeze(1)  # [B, 1, 1, T, S]
    # A finite floor and the product below make a fully masked row 0 where -inf would make it NaN.
    weights: Tensor = scores.masked_fill(~visible, torch.finfo(torch.float32).min).softmax(dim=-1)
    return weights * visible


def _weigh(weights: Tensor, values: Tensor, query: Tensor) -> Tensor:
    context: Tensor = weights @ values.float().unsqueeze(2)  # [B, K, G, T, D]
    return context.reshape(query.shape).to(query.dtype)


def recording_attention(seen: list[Tensor]) -> Attend:
    """Make an eager attention that also appends its weights, [B, H, T, S] float32, to a list."""

    def attend(query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        weights = attention_weights(query, keys, step)
        seen.append(weights.flatten(1, 2))
        return _weigh(weights, values, query)

    return attend


def sdpa_attention(query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
    """Attend through PyTorch's fused kernel with an explicit boolean mask; shapes as in eager."""
    # enable_gqa shares key heads without repeating them in memory; torch's ONNX translation refuses it
    # where there is nothing to share.
    context: Tensor = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=step.visible, enable_gqa=keys.shape[1] != query.shape[1]
    )
    return context


def flash_attention(query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
    """Attend through the flash kernel; shapes as in eager.

    The kernel is causal or unmasked, nothing else. Rows with padding are therefore packed to their real
    tokens, attended one by one and spread out again.
    """
    T = query.shape[2]
    is_token = step.visible[:, 0, -1]  # [B, S]: the last query sees every slot but the padding
    if bool(is_token.all()):
        return _flash(query, keys, values)
    context = torch.zeros_like(query)
    for row, tokens in enumerate(is_token):
        new = tokens[-T:]
        if bool(new.any()):
            packed = _flash(
                query[row, :, new][None], keys[row, :, tokens][None], values[row, :, tokens][None]
            )
            context[row, :, new] = packed[0]
    return context


def _flash(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend causally, with a lower-right diagonal, through the flash kernel and no other."""
    from torch.nn.attention.bias import causal_lower_right  # brings TorchDynamo along: a second of imports

    H, T, S = query.shape[1], query.shape[2], keys.shape[2]
    mask = None if T == 1 else causal_lower_right(T, S)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, enable_gqa=keys.shape[1] != H
        )


ATTENTION: dict[AttentionPath, Attend] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
    "flash": flash_attention,
}
