"""The ONNX graph's inputs and outputs, as data: the single source for exporter, manifest and tests.

The names are those that optimum, onnxruntime-genai, transformers.js and our own runtime all feed.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama_export.errors import OptionError
from llama_export.model.attention import AttentionPath
from llama_export.model.config import LlamaConfig, Task

BATCH = "batch_size"
SEQUENCE = "sequence_length"
PAST = "past_sequence_length"
TOTAL = "total_sequence_length"
LOGITS = "logits_length"

PAST_KEY = "past_key_values.{i}.key"
PAST_VALUE = "past_key_values.{i}.value"
PRESENT_KEY = "present.{i}.key"
PRESENT_VALUE = "present.{i}.value"

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, dtype (``"int64"``, ``"float32"``) and dims, symbolic ones by name."""

    name: str
    dtype: str
    shape: Dims


NUM_LOGITS_TO_KEEP = TensorSpec("num_logits_to_keep", "int64", (1,))
"""Overridable initializer, default 0: compute the logits of that many last tokens; 0 means all."""

ROPE_LENGTH = TensorSpec("rope_length", "int64", (1,))
"""Overridable initializer, default 0: rotate for a text of at least so many tokens. Only in graphs whose
angles depend on the length of the text."""

OPSETS: dict[AttentionPath, dict[str, int]] = {
    "eager": {"": 18},
    "sdpa": {"": 23},
    "flash": {"": 23, "com.microsoft": 1},
}
IR_VERSIONS: dict[AttentionPath, int] = {"eager": 8, "sdpa": 11, "flash": 11}

_FUSED_HEAD_DIM = 16  # GroupQueryAttention rotates heads of a multiple of this size


def check_path(config: LlamaConfig, path: AttentionPath) -> None:
    """Refuse an attention path whose operators cannot compute the model.

    Raises:
        OptionError: ``flash``, and a head_dim that GroupQueryAttention does not take.
    """
    if path == "flash" and config.head_dim % _FUSED_HEAD_DIM:
        raise OptionError(
            f"attention flash needs a head_dim that is a multiple of {_FUSED_HEAD_DIM}, "
            f"the checkpoint's is {config.head_dim}",
            "use --attention sdpa, which takes any",
        )


def inputs(config: LlamaConfig) -> list[TensorSpec]:
    """What a graph must be fed, in order: a task head whole texts, a causal LM steps and their cache."""
    if not config.generates:
        return [
            TensorSpec("input_ids", "int64", (BATCH, SEQUENCE)),
            TensorSpec("attention_mask", "int64", (BATCH, SEQUENCE)),
        ]
    past: Dims = (BATCH, config.num_key_value_heads, PAST, config.head_dim)
    specs = [
        TensorSpec("input_ids", "int64", (BATCH, SEQUENCE)),
        TensorSpec("attention_mask", "int64", (BATCH, TOTAL)),
        TensorSpec("position_ids", "int64", (BATCH, SEQUENCE)),
    ]
    for i in range(config.num_hidden_layers):
        specs += [TensorSpec(name.format(i=i), "float32", past) for name in (PAST_KEY, PAST_VALUE)]
    return specs


def optional_inputs(config: LlamaConfig) -> list[TensorSpec]:
    """What a graph may be fed besides; each has a default of 0."""
    if not config.generates:
        return []
    return [NUM_LOGITS_TO_KEEP, ROPE_LENGTH] if config.rope.depends_on_length else [NUM_LOGITS_TO_KEEP]


def outputs(config: LlamaConfig) -> list[TensorSpec]:
    """What a graph returns, in order."""
    if not config.generates:
        return _head_outputs(config)
    present: Dims = (BATCH, config.num_key_value_heads, TOTAL, config.head_dim)
    specs = [TensorSpec("logits", "float32", (BATCH, LOGITS, config.vocab_size))]
    for i in range(config.num_hidden_layers):
        specs += [TensorSpec(name.format(i=i), "float32", present) for name in (PRESENT_KEY, PRESENT_VALUE)]
    return specs


def _head_outputs(config: LlamaConfig) -> list[TensorSpec]:
    labels = len(config.head.labels)
    shapes: dict[Task, dict[str, Dims]] = {
        "feature-extraction": {"last_hidden_state": (BATCH, SEQUENCE, config.hidden_size)},
        "text-classification": {"logits": (BATCH, labels)},
        "token-classification": {"logits": (BATCH, SEQUENCE, labels)},
        "question-answering": {"start_logits": (BATCH, SEQUENCE), "end_logits": (BATCH, SEQUENCE)},
    }
    return [TensorSpec(name, "float32", shape) for name, shape in shapes[config.head.task].items()]
