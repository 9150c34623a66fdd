"""The whole model: embedding, layers, norm and language-model head, under Hugging Face's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llama_export.model.attention import AttentionPath
from llama_export.model.cache import GrowingCache, KVCache
from llama_export.model.config import LlamaConfig
from llama_export.model.layer import DecoderLayer, RMSNorm
from llama_export.model.rope import inverse_frequencies
from llama_export.model.step import make_step, positions, text_lengths


class LlamaModel(nn.Module):
    """Embedding, decoder layers and final norm.

    Args:
        config: The checkpoint's architecture.
        attention: Which attention path computes it.
    """

    def __init__(self, config: LlamaConfig, attention: AttentionPath = "eager") -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, attention) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config, attention)
        self.register_buffer("inv_freq", inverse_frequencies(config), persistent=False)
        self.inv_freq: Tensor

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
        rope_length: int = 0,
    ) -> Tensor:
        """Compute the last hidden states: of a whole text, a chunk of it, or one step of decoding.

        Args:
            input_ids: [B, T] int64, the new tokens.
            attention_mask: [B, S] int64: 1 for a token, 0 for padding, past included; default all ones.
            position_ids: [B, T] int64; default each row's count of tokens before.
            cache: Holds the P past slots and receives T more; default a fresh one.
            rope_length: How long the text will be, if this is a chunk of it; matters where angles depend
                on the length (``dynamic``, ``longrope``).

        Returns:
            [B, T, hidden_size], normalised.
        """
        B, T = input_ids.shape
        cache = GrowingCache() if cache is None else cache
        if attention_mask is None:
            attention_mask = torch.ones(B, cache.length + T, dtype=torch.int64, device=input_ids.device)
        if position_ids is None:
            position_ids = positions(attention_mask)[:, -T:]
        lengths = text_lengths(position_ids).clamp(min=rope_length)
        step = make_step(attention_mask, position_ids, self.inv_freq, self.config, lengths)
        hidden = self.embed_tokens(input_ids).flatten(0, 1)  # [N, hidden_size]
        for layer in self.layers:
            hidden = layer(hidden, step, cache)
        normed: Tensor = self.norm(hidden)
        return normed.view(B, T, -1)


class LlamaForCausalLM(nn.Module):
    """A LLaMA that predicts the next token.

    The state dict has exactly a Hugging Face checkpoint's names; with tied embeddings the head has no
    weight of its own.

    Args:
        config: The checkpoint's architecture.
        attention: Which attention path computes it.
    """

    def __init__(self, config: LlamaConfig, attention: AttentionPath = "eager") -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config, attention)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """[V, hidden_size]: the head's weight, which is the embedding's when they are tied."""
        tied = self.config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KVCache | None = None,
        num_logits_to_keep: int = 0,
        rope_length: int = 0,
    ) -> Tensor:
        """Predict the token after each given one; arguments as in ``LlamaModel``.

        Args:
            input_ids: [B, T] int64, the new tokens.
            attention_mask: [B, S] int64.
            position_ids: [B, T] int64.
            cache: Holds the P past slots and receives T more.
            num_logits_to_keep: Compute the logits of the last so many tokens only; 0 means all.
            rope_length: How long the text will be, if this is a chunk of it.

        Returns:
            Logits [B, T or num_logits_to_keep, V].
        """
        hidden = self.model(input_ids, attention_mask, position_ids, cache, rope_length)
        return nn.functional.linear(hidden[:, -num_logits_to_keep:], self.head_weight)
