"""The inputs and outputs of a TensorRT engine's graph, as data: a cache of fixed capacity, written in place.

Keys and values of all C slots are graph inputs; a run writes T new tokens from ``write_indices`` on and
attends to the first ``kv_bucket`` slots. Slot and position are the same: rows are never padded. What
stands in slots behind a row's last token is never seen.
"""

from __future__ import annotations

from llama_export.graph.contract import (
    BATCH,
    INPUT_IDS,
    PAST_KEY,
    PAST_VALUE,
    PRESENT_KEY,
    PRESENT_VALUE,
    ROPE_LENGTH,
    SEQUENCE,
    Dims,
    TensorSpec,
    head_outputs,
)
from llama_export.graph.contract import inputs as whole_text_inputs
from llama_export.model.config import LlamaConfig

LAST_HIDDEN_STATE = "last_hidden_state"
BUCKET = "kv_bucket_length"
OPSET, IR_VERSION = 24, 11
POSITION_IDS = TensorSpec("position_ids", "int64", (BATCH, SEQUENCE))
WRITE_INDICES = TensorSpec("write_indices", "int64", (BATCH,))
KV_BUCKET = TensorSpec("kv_bucket", "int64", (1,))
"""How many slots are read: a host number, from which shapes follow."""


def inputs(config: LlamaConfig, dtype: str, capacity: int) -> list[TensorSpec]:
    """What an engine is fed, in order.

    Args:
        config: The checkpoint's architecture.
        dtype: Of keys and values, such as ``"bfloat16"``.
        capacity: C, slots of the cache.
    """
    if not config.generates:
        return whole_text_inputs(config)
    cache = cache_shape(config, capacity)
    specs = [INPUT_IDS, POSITION_IDS, WRITE_INDICES, KV_BUCKET]
    specs += [ROPE_LENGTH] if config.rope.depends_on_length else []
    for i in range(config.num_hidden_layers):
        specs += [TensorSpec(name.format(i=i), dtype, cache) for name in (PAST_KEY, PAST_VALUE)]
    return specs


def outputs(
    config: LlamaConfig, dtype: str, capacity: int, last_hidden_state: bool = False
) -> list[TensorSpec]:
    """What it gives, in order.

    Of a language model the last token's logits, all tokens' last hidden states where they are wanted, and the
    caches it was given.
    """
    if not config.generates:
        return head_outputs(config)
    cache = cache_shape(config, capacity)
    specs = [TensorSpec("logits", "float32", (BATCH, config.vocab_size))]
    if last_hidden_state:
        specs.append(TensorSpec(LAST_HIDDEN_STATE, "float32", (BATCH, SEQUENCE, config.hidden_size)))
    for i in range(config.num_hidden_layers):
        specs += [TensorSpec(name.format(i=i), dtype, cache) for name in (PRESENT_KEY, PRESENT_VALUE)]
    return specs


def cache_shape(config: LlamaConfig, capacity: int) -> Dims:
    """[B, K, C, D]."""
    return (BATCH, config.num_key_value_heads, capacity, config.head_dim)


def aliases(config: LlamaConfig) -> dict[str, str]:
    """Each cache output, and the input whose memory it must share."""
    pairs = ((PRESENT_KEY, PAST_KEY), (PRESENT_VALUE, PAST_VALUE))
    layers = range(config.num_hidden_layers if config.generates else 0)
    return {present.format(i=i): past.format(i=i) for i in layers for present, past in pairs}
