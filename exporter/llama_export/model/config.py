"""What a checkpoint is: facts only, in the words of ``config.json``, frozen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding, as ``rope_parameters`` (transformers 5) spells it.

    Attributes:
        rope_type: ``"default"`` or ``"llama3"``.
        rope_theta: Base of the geometric series of wavelengths.
        factor: ``llama3``: by how much long wavelengths are stretched.
        low_freq_factor: ``llama3``: wavelengths above original / low_freq_factor are stretched fully.
        high_freq_factor: ``llama3``: wavelengths below original / high_freq_factor are left alone.
        original_max_position_embeddings: ``llama3``: context length before stretching, in tokens.
    """

    rope_type: str = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """The architecture of one checkpoint; the names are ``config.json``'s keys.

    Attributes:
        vocab_size: V, rows of the embedding and of the head.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_hidden_layers: Number of decoder layers.
        num_attention_heads: H, query heads.
        num_key_value_heads: K, key and value heads; H is a multiple of it.
        head_dim: D, width of one head; even; not always hidden_size / H.
        max_position_embeddings: Longest sequence the model was made for, in tokens.
        rms_norm_eps: Added to the mean square in every RMSNorm.
        rope: Rotary position embedding.
        tie_word_embeddings: Whether the head is the embedding.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig = RopeConfig()
    tie_word_embeddings: bool = False

    def layer_shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight of decoder layer ``index``, in Hugging Face's names."""
        hidden, inter = self.hidden_size, self.intermediate_size
        q_size, kv_size = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        prefix = f"model.layers.{index}."
        return {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (q_size, hidden),
            prefix + "self_attn.k_proj.weight": (kv_size, hidden),
            prefix + "self_attn.v_proj.weight": (kv_size, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, q_size),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "mlp.gate_proj.weight": (inter, hidden),
            prefix + "mlp.up_proj.weight": (inter, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inter),
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight the model needs, in the order of computation."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size)
        }
        for index in range(self.num_hidden_layers):
            shapes |= self.layer_shapes(index)
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes
