"""``config.json`` -> LlamaConfig: every fact read, none guessed."""

from __future__ import annotations

from typing import Any

from llama_export.checkpoint.families import what_is_needed
from llama_export.checkpoint.fields import NOT_YET, Fields
from llama_export.checkpoint.head import task_of_architectures
from llama_export.checkpoint.rope import parse_rope
from llama_export.model.config import ACTIVATIONS, LlamaConfig

_FLOAT_ORIGINAL = "export the float checkpoint that this one was quantized from"
_OTHER_FAMILY = "only LLaMA checkpoints are exported"


def parse_config(raw: dict[str, Any]) -> LlamaConfig:
    """Read the architecture from ``config.json``, as transformers 4.x or 5.x writes it.

    Only keys that the format gained after Llama 1 may be absent, and then mean what Llama 1 does.
    Keys that do not change what the model computes are ignored. Which head there is depends on the tensors
    too, and is ``parse_head``'s to say.

    Args:
        raw: ``config.json``, parsed.

    Raises:
        ConfigError: A field is missing, has the wrong type or range, contradicts another, or asks for
            something that is not supported.
    """
    fields = Fields(raw)
    _refuse_other_models(fields)
    hidden_size = fields.positive_int("hidden_size")
    num_heads = fields.positive_int("num_attention_heads")
    head_dim = _head_dim(fields, hidden_size, num_heads)
    return LlamaConfig(
        vocab_size=fields.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.positive_int("intermediate_size"),
        num_hidden_layers=fields.positive_int("num_hidden_layers"),
        num_attention_heads=num_heads,
        num_key_value_heads=_key_value_heads(fields, num_heads),
        head_dim=head_dim,
        max_position_embeddings=fields.positive_int("max_position_embeddings"),
        rms_norm_eps=fields.positive_float("rms_norm_eps"),
        rope=parse_rope(fields, head_dim),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        hidden_act=_activation(fields),
        attention_bias=fields.flag("attention_bias"),
        mlp_bias=fields.flag("mlp_bias"),
    )


def _refuse_other_models(fields: Fields) -> None:
    """Refuse by name whatever would make the model compute something else than Llama does."""
    if fields.get("model_type") != "llama":
        raise fields.unsupported("model_type", 'must be "llama"', what_is_needed(fields.get("model_type")))
    task_of_architectures(fields)
    for key in ("quantization_config", "compression_config"):
        if fields.get(key) is not None:
            raise fields.unsupported(
                key, "must be absent: quantized checkpoints are not read", _FLOAT_ORIGINAL
            )
    if fields.get("sliding_window") is not None:
        raise fields.unsupported("sliding_window", "only null is supported so far")


def _activation(fields: Fields) -> str:
    name = fields.get("hidden_act")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        allowed = "must be one of " + ", ".join(f'"{name}"' for name in ACTIVATIONS)
        hint = {} if name is None else {"hint": NOT_YET}
        raise fields.wrong("hidden_act", allowed, **hint)
    return name


def _key_value_heads(fields: Fields, num_heads: int) -> int:
    count = fields.positive_int("num_key_value_heads", absent=num_heads)
    if num_heads % count:
        raise fields.wrong("num_key_value_heads", f"must divide num_attention_heads, {num_heads}")
    return count


def _head_dim(fields: Fields, hidden_size: int, num_heads: int) -> int:
    if fields.get("head_dim") is None and hidden_size % num_heads:
        raise fields.wrong(
            "head_dim", f"and hidden_size, {hidden_size}, is no multiple of num_attention_heads, {num_heads}"
        )
    head_dim = fields.positive_int("head_dim", absent=hidden_size // num_heads)
    if head_dim % 2 and fields.get("head_dim") is None:
        raise fields.wrong("head_dim", f"and hidden_size / num_attention_heads is {head_dim}, must be even")
    if head_dim % 2:
        raise fields.wrong("head_dim", "must be even, as rotary embedding turns pairs")
    return head_dim
