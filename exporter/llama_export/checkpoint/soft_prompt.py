"""PEFT's prompt tuning and prefix tuning: learned positions that stand in front of every text.

Prompt tuning learns embeddings (Lester et al. 2021, arXiv 2104.08691), prefix tuning the keys and values of
every layer (Li and Liang 2021, arXiv 2101.00190). Nothing is merged: the base's weights stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llama_export.checkpoint.adapter_config import CONFIG_FILE, config_error
from llama_export.checkpoint.json_file import read_json_object, shown, shown_name
from llama_export.checkpoint.tensor import StoredTensor
from llama_export.errors import CheckpointError, OptionError
from llama_export.model.config import LlamaConfig

Kind = Literal["embeddings", "keys and values"]
KINDS: dict[str, Kind] = {"PROMPT_TUNING": "embeddings", "PREFIX_TUNING": "keys and values"}
_TENSOR = "prompt_embeddings"
# Where it comes from and how it was trained; PEFT saves what a projection of it gave, not the projection.
_HARMLESS = {
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"),
    *("tokenizer_kwargs", "encoder_hidden_size", "prefix_projection", "init_weights", "num_virtual_tokens"),
    *("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"),
}
_OTHER_BASE = "name the checkpoint that the adapter was trained on"


@dataclass(frozen=True)
class SoftPrompt:
    """Positions in front of every text.

    Attributes:
        folder: The adapter's.
        kind: What was learned.
        tensor: ``embeddings``: [P, hidden_size]; ``keys and values``: [P, 2 * layers * K * D], each layer's
            keys before its values.
    """

    folder: Path
    kind: Kind
    tensor: StoredTensor

    @property
    def positions(self) -> int:
        """P: how many there are."""
        return self.tensor.shape[0]


def is_soft_prompt(folder: Path) -> bool:
    """Whether an adapter is one of ``KINDS``.

    Raises:
        CheckpointError: ``adapter_config.json`` is missing or no JSON object.
    """
    return read_json_object(folder / CONFIG_FILE, CONFIG_FILE).get("peft_type") in tuple(KINDS)


def read_soft_prompt(folder: Path, stored: dict[str, StoredTensor], config: LlamaConfig) -> SoftPrompt:
    """Check a learned prompt against the model that it stands in front of.

    Args:
        folder: The adapter's.
        stored: Its tensors.
        config: The base's.

    Raises:
        CheckpointError: It is damaged or for another base.
        ConfigError: It says something that is not honoured.
        OptionError: The base is no language model, or one for which a prefix is not exact.
    """
    raw = read_json_object(folder / CONFIG_FILE, CONFIG_FILE)
    _check_config(raw)
    _check_base(config)
    kind = KINDS[raw["peft_type"]]
    for key in stored:
        if key != _TENSOR:
            raise CheckpointError(
                f"{folder}: tensor {shown_name(key)} belongs to no learned prompt", _OTHER_BASE
            )
    if _TENSOR not in stored:
        raise CheckpointError(f"{folder}: tensor {_TENSOR} is missing", "download the adapter again")
    count, tensor = raw["num_virtual_tokens"], stored[_TENSOR]
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    needed = (count, config.hidden_size if kind == "embeddings" else heads)
    if tensor.shape != needed:
        raise CheckpointError(
            f"{folder}: tensor {_TENSOR} is {shown(list(tensor.shape))}, the base and {CONFIG_FILE} need "
            f"{list(needed)}",
            _OTHER_BASE,
        )
    if count >= config.context_length:
        raise CheckpointError(
            f"{folder}: {count} virtual tokens leave no room for a text, the base has "
            f"{config.context_length} positions",
            _OTHER_BASE,
        )
    return SoftPrompt(folder, kind, tensor)


def _check_config(raw: dict[str, Any]) -> None:
    for key, value in raw.items():
        if key not in _HARMLESS and value not in (None, False, [], {}, ""):
            raise config_error(
                raw, key, "is not honoured for a learned prompt", "train it without, or merge it"
            )
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise config_error(raw, "task_type", 'must be "CAUSAL_LM": a prefix needs a cache', _OTHER_BASE)
    count = raw.get("num_virtual_tokens")
    if type(count) is not int or not 1 <= count < 2**31:
        raise config_error(raw, "num_virtual_tokens", "must be a positive integer")
    if raw.get("num_transformer_submodules") not in (None, 1):
        raise config_error(raw, "num_transformer_submodules", "must be 1: a language model has no encoder")


def _check_base(config: LlamaConfig) -> None:
    if not config.generates:
        raise OptionError(
            f"a learned prompt stands in a language model's cache, the task is {config.head.task}",
            "use --task text-generation, or leave the adapter out",
        )
    if config.rope.depends_on_length:
        raise OptionError(
            f"a learned prompt is not exact before {config.rope.rope_type} rotary embedding, whose angles "
            "change with the length of the text",
            "leave the adapter out",
        )
