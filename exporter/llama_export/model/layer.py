"""One decoder layer: normalise, attend, normalise, MLP, each added to the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_export.model import fused
from llama_export.model.attention import ATTENTION, AttentionPath
from llama_export.model.cache import GrowingCache, KVCache
from llama_export.model.config import ACTIVATIONS, LlamaConfig
from llama_export.model.rope import rotate
from llama_export.model.step import FusedStep, Step

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class RMSNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).

    Computed in float32 whatever the input dtype: the square of a float16 activation overflows.
    """

    def __init__(self, config: LlamaConfig, path: AttentionPath) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps
        self.path = path

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise [N, hidden_size]; the dtype stays."""
        if self.path != "eager":
            return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        wide = hidden.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * normed.to(hidden.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary embedding and a cache."""

    def __init__(self, config: LlamaConfig, index: int, path: AttentionPath) -> None:
        super().__init__()
        self.q_heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        q_size, kv_size = self.q_heads * self.head_dim, self.kv_heads * self.head_dim
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=bias)
        self.index = index
        self.path = path
        self.attend = ATTENTION[path]

    def forward(self, hidden: Tensor, step: Step | FusedStep, cache: KVCache) -> Tensor:
        """Attend over the cache and the new tokens.

        Args:
            hidden: [N, hidden_size], normalised.
            step: What all layers share.
            cache: Holds P slots of this layer; S afterwards.

        Returns:
            [N, hidden_size].
        """
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        if isinstance(step, FusedStep):
            context = self._attend_fused(query, key, value, step, cache)
        else:
            context = self._attend(query, key, value, step, cache)
        projected: Tensor = self.o_proj(context)
        return projected

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, step: Step, cache: KVCache) -> Tensor:
        """Rotate, append to the cache and attend; [N, ...] projections in, context [N, H * D] out."""
        B, T = step.cos.shape[:2]
        turn = fused.rotary_embedding if self.path == "sdpa" and torch.compiler.is_exporting() else rotate
        query = query.view(B, T, self.q_heads, self.head_dim).transpose(1, 2)  # [B, H, T, D]
        key = key.view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)  # [B, K, T, D]
        value = value.view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)  # [B, K, T, D]
        query, key = turn(query, step.cos, step.sin), turn(key, step.cos, step.sin)
        keys, values = cache.append(self.index, key, value)  # [B, K, S, D]
        context = self.attend(query, keys, values, step).transpose(1, 2)  # [B, T, H, D]
        return context.reshape(B * T, self.q_heads * self.head_dim)

    def _attend_fused(
        self, query: Tensor, key: Tensor, value: Tensor, step: FusedStep, cache: KVCache
    ) -> Tensor:
        """The same as one node of an exported graph, which appends to the cache by itself."""
        assert isinstance(cache, GrowingCache)
        past = (cache.keys[self.index], cache.values[self.index]) if cache.keys else None
        context, *present = fused.group_query_attention(query, key, value, past, step, self.head_dim)
        if past is not None:
            cache.keys[self.index], cache.values[self.index] = present
        return context


class MLP(nn.Module):
    """Gated feed-forward network (Shazeer 2020, arXiv 2002.05202); with SiLU it is SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        hidden, inter, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inter, bias=bias)
        self.up_proj = nn.Linear(hidden, inter, bias=bias)
        self.down_proj = nn.Linear(inter, hidden, bias=bias)
        self.act_fn = _ACTIVATIONS[ACTIVATIONS[config.hidden_act]]

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [N, hidden_size] to [N, hidden_size]."""
        down: Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))
        return down


class DecoderLayer(nn.Module):
    """One layer of the residual stream, with a slot of its own in the cache.

    Args:
        config: The checkpoint's architecture.
        index: Which slot of the cache is this layer's.
        path: The attention path.
    """

    def __init__(self, config: LlamaConfig, index: int, path: AttentionPath) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config, path)
        self.self_attn = Attention(config, index, path)
        self.post_attention_layernorm = RMSNorm(config, path)
        self.mlp = MLP(config)

    def forward(self, hidden: Tensor, step: Step | FusedStep, cache: KVCache) -> Tensor:
        """Map [N, hidden_size] to [N, hidden_size] and append to the cache."""
        # Flat tokens make every Linear a Gemm with transB=1, which reads [out, in] weights as they are.
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), step, cache)
        mlp: Tensor = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + mlp
