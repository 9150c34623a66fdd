"""The ONNX graph's inputs and outputs, as data: the single source for exporter, manifest and tests.

The names are those that optimum, onnxruntime-genai, transformers.js and our own runtime all feed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from llama_export.errors import OptionError
from llama_export.model.attention import AttentionPath
from llama_export.model.config import LlamaConfig, Task

PRODUCER = "llama-export"
BATCH = "batch_size"
SEQUENCE = "sequence_length"
PAST = "past_sequence_length"
TOTAL = "total_sequence_length"
LOGITS = "logits_length"

PAST_KEY = "past_key_values.{i}.key"
PAST_VALUE = "past_key_values.{i}.value"
PRESENT_KEY = "present.{i}.key"
PRESENT_VALUE = "present.{i}.value"
LAST_HIDDEN_STATE = "last_hidden_state"
HIDDEN_STATES = "hidden_states.{i}"
ATTENTIONS = "attentions.{i}"

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, dtype as NumPy calls it, and dims, symbolic ones by name."""

    name: str
    dtype: str
    shape: Dims


CacheDtype = Literal["float32", "int8"]
CACHE_DTYPES: tuple[CacheDtype, ...] = get_args(CacheDtype)
WhichStates = Literal["last", "all"]
Compute = Literal["float32", "float16"]
COMPUTE: tuple[Compute, ...] = get_args(Compute)
AnyCache = Literal["float32", "float16", "int8"]
WHICH_STATES: tuple[WhichStates, ...] = get_args(WhichStates)


@dataclass(frozen=True)
class Extras:
    """What a causal language model's graph takes and gives besides the default; nothing unless asked for.

    Attributes:
        hidden_states: ``last``: the hidden states behind the final norm; ``all``: the embeddings, what each
            layer but the last gives, and those, as transformers counts them.
        attentions: Every layer's attention weights; on the eager path alone.
        inputs_embeds: Embeddings are fed in place of token ids; a graph of its own looks them up.
        compute: What it computes in, and what its cache holds unless that is int8.
        cache: ``int8`` keeps codes of keys and values; on the flash path alone.
    """

    hidden_states: WhichStates | None = None
    attentions: bool = False
    inputs_embeds: bool = False
    compute: Compute = "float32"
    cache: CacheDtype = "float32"

    @property
    def gives_more(self) -> bool:
        """Whether any of them changes more than what the graph computes in."""
        return replace(self, compute="float32") != NO_EXTRAS

    @property
    def cache_dtype(self) -> AnyCache:
        """Of keys and values in the cache."""
        return "int8" if self.cache == "int8" else self.compute


NO_EXTRAS = Extras()

NUM_LOGITS_TO_KEEP = TensorSpec("num_logits_to_keep", "int64", (1,))
"""Overridable initializer, default 0: compute the logits of that many last tokens; 0 means all."""

INPUT_IDS = TensorSpec("input_ids", "int64", (BATCH, SEQUENCE))

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


def check_extras(config: LlamaConfig, path: AttentionPath, extras: Extras) -> None:
    """Refuse extras that a graph cannot have.

    Raises:
        OptionError: Another task than text-generation, or attentions on a path that never has them.
    """
    if extras.compute == "float16":
        _check_half(config, path, extras)
    if extras.gives_more and not config.generates:
        raise OptionError(
            "hidden_states, attentions, inputs_embeds and an int8 cache are for text-generation, "
            f"the task is {config.head.task}",
            "leave them out; --task feature-extraction gives the last hidden states of any checkpoint",
        )
    if extras.attentions and path != "eager":
        raise OptionError(
            f"attentions are computed on the eager path alone, attention is {path}", "add --attention eager"
        )
    if extras.cache == "int8" and path != "flash":
        raise OptionError(
            f"an int8 cache needs the operator of the flash path, attention is {path}",
            "use --attention flash, or leave --cache out",
        )


def _check_half(config: LlamaConfig, path: AttentionPath, extras: Extras) -> None:
    """Refuse a graph that cannot be of float16: its angles and masks would be too."""
    unfit = [
        (not config.generates, f"the task is {config.head.task}", "leave --compute out"),
        (path != "flash", f"attention is {path}", "use --attention flash"),
        (config.rope.depends_on_length, f"rope is {config.rope.rope_type}", "leave --compute out"),
        (extras.gives_more, "it has other inputs or outputs than the default", "leave --compute out"),
    ]
    for is_so, what, remedy in unfit:
        if is_so:
            raise OptionError(
                f"compute float16 is for language models on the flash path with a table of angles, {what}",
                remedy,
            )


def inputs(config: LlamaConfig, extras: Extras = NO_EXTRAS) -> list[TensorSpec]:
    """What a graph must be fed, in order: a task head whole texts, a causal LM steps and their cache."""
    if not config.generates:
        return [
            INPUT_IDS,
            TensorSpec("attention_mask", "int64", (BATCH, SEQUENCE)),
        ]
    past: Dims = (BATCH, config.num_key_value_heads, PAST, config.head_dim)
    specs = [
        inputs_embeds(config) if extras.inputs_embeds else INPUT_IDS,
        TensorSpec("attention_mask", "int64", (BATCH, TOTAL)),
        TensorSpec("position_ids", "int64", (BATCH, SEQUENCE)),
    ]
    for i in range(config.num_hidden_layers):
        specs += [TensorSpec(name.format(i=i), extras.cache_dtype, past) for name in (PAST_KEY, PAST_VALUE)]
    return specs


def optional_inputs(config: LlamaConfig) -> list[TensorSpec]:
    """What a graph may be fed besides; each has a default of 0."""
    if not config.generates:
        return []
    return [NUM_LOGITS_TO_KEEP, ROPE_LENGTH] if config.rope.depends_on_length else [NUM_LOGITS_TO_KEEP]


def inputs_embeds(config: LlamaConfig) -> TensorSpec:
    """The input in place of token ids, and the output of the graph that looks embeddings up."""
    return TensorSpec("inputs_embeds", "float32", (BATCH, SEQUENCE, config.hidden_size))


def outputs(config: LlamaConfig, extras: Extras = NO_EXTRAS) -> list[TensorSpec]:
    """What a graph returns, in order."""
    if not config.generates:
        return head_outputs(config)
    present: Dims = (BATCH, config.num_key_value_heads, TOTAL, config.head_dim)
    specs = [TensorSpec("logits", "float32", (BATCH, LOGITS, config.vocab_size))]
    for i in range(config.num_hidden_layers):
        specs += [
            TensorSpec(name.format(i=i), extras.cache_dtype, present) for name in (PRESENT_KEY, PRESENT_VALUE)
        ]
    return specs + extra_outputs(config, extras)


def extra_outputs(config: LlamaConfig, extras: Extras) -> list[TensorSpec]:
    """What extras add to the outputs: hidden states, then attentions."""
    count, states = config.num_hidden_layers, list[str]()
    if extras.hidden_states is not None:
        states = [LAST_HIDDEN_STATE]
    if extras.hidden_states == "all":
        states = [HIDDEN_STATES.format(i=i) for i in range(count + 1)]
    by_token: Dims = (BATCH, SEQUENCE, config.hidden_size)
    by_head: Dims = (BATCH, config.num_attention_heads, SEQUENCE, TOTAL)
    weights = [ATTENTIONS.format(i=i) for i in range(count if extras.attentions else 0)]
    return [
        *(TensorSpec(name, "float32", by_token) for name in states),
        *(TensorSpec(name, "float32", by_head) for name in weights),
    ]


def head_outputs(config: LlamaConfig) -> list[TensorSpec]:
    """What the graph of another task than text-generation returns, in order."""
    labels = len(config.head.labels)
    shapes: dict[Task, dict[str, Dims]] = {
        "feature-extraction": {LAST_HIDDEN_STATE: (BATCH, SEQUENCE, config.hidden_size)},
        "text-classification": {"logits": (BATCH, labels)},
        "token-classification": {"logits": (BATCH, SEQUENCE, labels)},
        "question-answering": {"start_logits": (BATCH, SEQUENCE), "end_logits": (BATCH, SEQUENCE)},
    }
    return [TensorSpec(name, "float32", shape) for name, shape in shapes[config.head.task].items()]
