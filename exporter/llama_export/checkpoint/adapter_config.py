"""``adapter_config.json`` of PEFT -> AdapterConfig: every fact that changes the merge read, none guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_export.checkpoint.json_file import read_json_object, shown, shown_name
from llama_export.errors import ConfigError
from llama_export.model.config import Task

CONFIG_FILE = "adapter_config.json"
_MERGE_FIRST = "merge it into its base with PEFT's merge_and_unload, and export the merged folder"
_DAMAGED = f"{CONFIG_FILE} is damaged or was edited; take the one that belongs to the adapter"
# Keys that say where the adapter comes from or how it was trained, and change nothing of what it computes.
# fan_in_fan_out is among them: it is for GPT-2's transposed layers, and PEFT ignores it for Linear.
_HARMLESS = {
    *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "fan_in_fan_out", "megatron_core", "runtime_config", "bias"),
    *("qalora_group_size", "ephemeral_gpu_offload"),
}
_READ = {
    *("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "init_lora_weights"),
    "task_type",
}
# The tasks whose head PEFT trains and saves as a whole; of the others it says nothing that changes the model.
_HEAD_TASKS: dict[str, Task] = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
}
# PEFT names both for every classifier, of which a model has one.
_CLASSIFIERS = {"classifier", "score"}
# Starts that leave the base as it is. The others (PiSSA, OLoRA, LoftQ, ...) move part of it into the adapter.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA adapter's facts; the names are ``adapter_config.json``'s keys.

    Attributes:
        r: Rank of both factors.
        lora_alpha: Scale of their product, before it is divided by the rank.
        use_rslora: Whether it is divided by the rank's root instead.
        use_dora: Whether rows get a learned length of their own.
        rank_pattern: Other ranks, by module name or regular expression.
        alpha_pattern: Other scales, the same way.
        target_modules: Module names or their ends, or one regular expression.
        exclude_modules: The same for modules that are left alone.
        layers_to_transform: Which layers; empty for all.
        layers_pattern: What a layer's number follows in a module's name; empty for anything.
        modules_to_save: Modules that were trained as a whole.
        task: The task whose head was trained too; None where the base's is kept.
        trunk: What the trained model calls ``model.``: so, ``transformer.``, or nothing.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    rank_pattern: dict[str, float]
    alpha_pattern: dict[str, float]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    task: Task | None
    trunk: str = "model."

    def rank(self, module: str) -> int:
        """How many columns B has for a module."""
        return int(_by_pattern(self.rank_pattern, self._trained_name(module), self.r))

    def scaling(self, module: str) -> float:
        """What B A is multiplied by for a module."""
        rank = self.rank(module)
        alpha = _by_pattern(self.alpha_pattern, self._trained_name(module), self.lora_alpha)
        return alpha / rank**0.5 if self.use_rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether the adapter should hold factors for a module of the model, by PEFT's rules."""
        if self.saves(module):
            return False
        module = self._trained_name(module)
        if _matches(self.exclude_modules, module):
            return False
        if self.target_modules == "all-linear":
            return module.endswith("_proj")
        if not _matches(self.target_modules, module):
            return False
        if isinstance(self.target_modules, str) or not self.layers_to_transform:
            return True
        patterns = self.layers_pattern or (r"[^.]*",)
        found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
        index = next((match[1] for match in found if match), None)
        return index is not None and int(index) in self.layers_to_transform

    def saves(self, module: str) -> bool:
        """Whether the adapter should hold a module as a whole."""
        return _matches(self.modules_to_save, module)

    def needs(self, name: str) -> bool:
        """Whether the base must have one of ``modules_to_save``."""
        return name not in _CLASSIFIERS or not {*self.modules_to_save} >= _CLASSIFIERS

    def _trained_name(self, module: str) -> str:
        return self.trunk + module.removeprefix("model.") if module.startswith("model.") else module


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check ``adapter_config.json``.

    Raises:
        CheckpointError: It is missing or no JSON object.
        ConfigError: It is no LoRA, or asks for something that could not be merged exactly.
    """
    raw = read_json_object(folder / CONFIG_FILE, CONFIG_FILE)
    if raw.get("peft_type") != "LORA":
        raise config_error(
            raw, "peft_type", 'must be "LORA"', "only LoRA adapters, with or without DoRA, are merged"
        )
    for key, value in raw.items():
        # Features that are off are written as null, false or nothing; an unknown one that is on may change
        # what the adapter computes.
        if key not in _HARMLESS | _READ and value not in (None, False, [], {}, ""):
            raise config_error(raw, key, "is not honoured in a merge", _MERGE_FIRST)
    if not any(raw.get("init_lora_weights") is start for start in _PLAIN_STARTS[:3]) and (
        raw.get("init_lora_weights") not in _PLAIN_STARTS[3:]
    ):
        raise config_error(
            raw, "init_lora_weights", "which also changes the base model's weights", _MERGE_FIRST
        )
    return AdapterConfig(
        r=_integer(raw, "r"),
        lora_alpha=_number(raw, "lora_alpha", raw.get("lora_alpha")),
        use_rslora=_flag(raw, "use_rslora"),
        use_dora=_flag(raw, "use_dora"),
        rank_pattern=_patterns(raw, "rank_pattern"),
        alpha_pattern=_patterns(raw, "alpha_pattern"),
        target_modules=_modules(raw, "target_modules"),
        exclude_modules=_modules(raw, "exclude_modules"),
        layers_to_transform=_layers(raw),
        layers_pattern=_names(raw, "layers_pattern"),
        modules_to_save=_names(raw, "modules_to_save"),
        task=head_task(raw),
    )


def head_task(raw: dict[str, Any]) -> Task | None:
    """The task whose head was trained with an adapter.

    Raises:
        ConfigError: ``task_type`` is no text.
    """
    kind = raw.get("task_type")
    if kind is not None and not isinstance(kind, str):
        raise config_error(raw, "task_type", "must be text")
    return None if kind is None else _HEAD_TASKS.get(kind)


def _matches(wanted: str | tuple[str, ...], module: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == name or module.endswith("." + name) for name in wanted)


def _by_pattern(patterns: dict[str, float], module: str, otherwise: float) -> float:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def config_error(raw: dict[str, Any], key: str, allowed: str, hint: str = _DAMAGED) -> ConfigError:
    """Make the error that says what ``key`` is and what it must be."""
    got = "missing" if raw.get(key) is None else shown(raw[key])
    return ConfigError(f"{CONFIG_FILE}: {shown_name(key)} is {got}, {allowed}", hint)


def _integer(raw: dict[str, Any], key: str) -> int:
    value = raw.get(key)
    if type(value) is not int or not 1 <= value < 2**31:
        raise config_error(raw, key, "must be a positive integer")
    return value


def _number(raw: dict[str, Any], key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise config_error(
            raw, key, "must be positive numbers" if isinstance(raw[key], dict) else "must be positive"
        )
    return float(value)


def _flag(raw: dict[str, Any], key: str) -> bool:
    value = raw.get(key)
    if value is not None and type(value) is not bool:
        raise config_error(raw, key, "must be true or false")
    return bool(value)


def _names(raw: dict[str, Any], key: str) -> tuple[str, ...]:
    value = raw.get(key)
    values = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
        raise config_error(raw, key, "must be names")
    return tuple(values)


def _modules(raw: dict[str, Any], key: str) -> str | tuple[str, ...]:
    value = raw.get(key)
    if not isinstance(value, str):
        return _names(raw, key)
    _compiled(raw, key, value)
    return value


def _layers(raw: dict[str, Any]) -> tuple[int, ...]:
    value = raw.get("layers_to_transform")
    values = [value] if type(value) is int else [] if value is None else value
    if not isinstance(values, list) or not all(type(index) is int and index >= 0 for index in values):
        raise config_error(raw, "layers_to_transform", "must be numbers of layers")
    return tuple(values)


def _patterns(raw: dict[str, Any], key: str) -> dict[str, float]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise config_error(raw, key, "must be an object")
    for pattern in value:
        _compiled(raw, key, pattern)
    return {pattern: _number(raw, key, number) for pattern, number in value.items()}


def _compiled(raw: dict[str, Any], key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        raise config_error(raw, key, "must be names or a regular expression") from None
