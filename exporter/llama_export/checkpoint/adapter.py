"""A PEFT adapter's folder, merged into the checkpoint that it was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from llama_export.checkpoint.adapter_config import CONFIG_FILE, AdapterConfig, read_adapter_config
from llama_export.checkpoint.folder import Checkpoint, open_checkpoint
from llama_export.checkpoint.head import HEAD_PREFIXES, canonical_name
from llama_export.checkpoint.json_file import resolve_file, shown, shown_name
from llama_export.checkpoint.lora import Factors, merge_embedding, merge_linear
from llama_export.checkpoint.safetensors import read_header
from llama_export.checkpoint.soft_prompt import is_soft_prompt, read_soft_prompt
from llama_export.checkpoint.tensor import LazyTensor, StoredTensor, widen
from llama_export.errors import CheckpointError, OptionError
from llama_export.model.config import Task

ADAPTER_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"
_DTYPE_KEYS = {"dtype", "torch_dtype"}  # as transformers 5 and 4 call it
_KINDS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_HEAD_TASK = "name the task of the adapter's head with --task, or the checkpoint that it was trained on"
_OTHER_BASE = "name the checkpoint that the adapter was trained on"
_INCOMPLETE = "the adapter's folder is incomplete; download it again, or save it with PEFT once more"


def open_merged(folder: Path, adapters: Sequence[Path] = (), task: Task | None = None) -> Checkpoint:
    """Open a checkpoint and merge adapters into it, in order; see ``open_checkpoint``, ``merge_adapter``.

    An adapter that was trained with a head decides on the task, where none is asked for; where the checkpoint
    has not that head, the adapter's is taken.
    """
    if not adapters:
        return open_checkpoint(folder, task)
    heads: dict[str, StoredTensor] = {}
    for adapter in adapters:
        if is_soft_prompt(_folder(adapter)):
            continue
        config, stored = _read(adapter)
        task = task or config.task
        heads |= {
            name: tensor for key, tensor in stored.items() if (name := _path(key)).startswith(HEAD_PREFIXES)
        }
    checkpoint = open_checkpoint(folder, task, heads)
    for adapter in adapters:
        if checkpoint.soft_prompt is not None:
            raise OptionError(
                f"{adapter}: comes behind a learned prompt, which must be the last and the only one",
                f"name {checkpoint.soft_prompt.folder} last",
            )
        checkpoint = merge_adapter(checkpoint, adapter)
    return checkpoint


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder", f"name the folder that holds {CONFIG_FILE}")
    return folder


def _read(folder: Path) -> tuple[AdapterConfig, dict[str, StoredTensor]]:
    """An adapter's config and header."""
    config = read_adapter_config(folder)
    stored = read_header(_weights_file(folder), ADAPTER_FILE)
    paths = (_path(key) for key in stored)
    trunks = (path.removesuffix(name[6:]) for path in paths if (name := canonical_name(path))[:6] == "model.")
    return dataclasses.replace(config, trunk=next(trunks, "model.")), stored


def merge_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Merge a LoRA adapter, or add a learned prompt; only its config and its header are read so far.

    Args:
        checkpoint: The base, perhaps with other adapters merged already.
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
        The checkpoint as the adapter makes it, all of it in float32: a merge into narrower weights would
        round away what was trained. With a learned prompt the weights stay as they are.

    Raises:
        CheckpointError: The adapter is damaged, incomplete, or for another base.
        ConfigError: It asks for something that could not be merged exactly.
        OptionError: A learned prompt, and the base cannot have one.
    """
    if folder.resolve() in (other.resolve() for other in checkpoint.adapters):
        raise CheckpointError(f"{folder}: is named twice, an adapter can be merged once", "name it once")
    if is_soft_prompt(_folder(folder)):
        stored = read_header(_weights_file(folder), ADAPTER_FILE)
        prompt = read_soft_prompt(folder, stored, checkpoint.config)
        note = (
            f"{prompt.positions} learned positions stand in front of every text; "
            "other runtimes than ours run the model without them"
        )
        return dataclasses.replace(checkpoint, soft_prompt=prompt, notes=(*checkpoint.notes, note))
    config, stored = _read(folder)
    factors, whole = _sorted_out(stored, checkpoint)
    for module in (*factors, *whole):
        checkpoint = _untied(checkpoint, module)
    tensors = dict(checkpoint.tensors)
    for key, tensor in whole.items():
        _check_shape(tensor, tensors[key].shape)
        tensors[key] = dataclasses.replace(tensor, name=key)
    _check_complete(config, checkpoint, factors, whole)
    for module, parts in factors.items():
        key = f"{module}.weight"
        merge = merge_embedding if module == _EMBEDDING else merge_linear
        tensors[key] = merge(tensors[key], _factors(module, parts, tensors[key], config))

    raw_config = checkpoint.raw_config
    return dataclasses.replace(
        checkpoint,
        dtype=torch.float32,
        raw_config=raw_config | dict.fromkeys(_DTYPE_KEYS & set(raw_config), "float32"),
        tensors={key: widen(tensor) for key, tensor in tensors.items()},
        weight_files=(*checkpoint.weight_files, _weights_file(folder)),
        adapters=(*checkpoint.adapters, folder),
    )


def _weights_file(folder: Path) -> Path:
    if not (folder / ADAPTER_FILE).exists() and (folder / "adapter_model.bin").exists():
        raise CheckpointError(
            f"{folder}: holds adapter_model.bin, adapters are read from {ADAPTER_FILE} alone",
            "load it with PEFT and write it with save_pretrained, which makes a safetensors file",
        )
    return resolve_file(folder / ADAPTER_FILE, ADAPTER_FILE)


def _sorted_out(
    stored: dict[str, StoredTensor], checkpoint: Checkpoint
) -> tuple[dict[str, dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """Tell factors, by module and kind, from tensors that replace the base's, by the base's key."""
    factors: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for key, tensor in stored.items():
        place = _place(key, checkpoint)
        if place is None:
            hint = _HEAD_TASK if _path(key).startswith(HEAD_PREFIXES) else _OTHER_BASE
            raise CheckpointError(
                f"{ADAPTER_FILE}: tensor {shown_name(key)} belongs to nothing in the base model", hint
            )
        target, kind = place
        holder = whole if kind is None else factors.setdefault(target, {})
        name = kind or target
        if name in holder:
            raise CheckpointError(f"{ADAPTER_FILE}: tensor {shown_name(key)} is there twice", _INCOMPLETE)
        holder[name] = tensor
    return factors, whole


def _path(key: str) -> str:
    return key.removeprefix(_PREFIX).replace(".base_layer.", ".")


def _place(key: str, checkpoint: Checkpoint) -> tuple[str, str | None] | None:
    """What an adapter's key means: a module and a kind of factor, or a tensor of the base and None."""
    name = canonical_name(_path(key))
    for ending, kind in _KINDS.items():
        module = name.removesuffix(f".{ending}")
        if module != name and _known(f"{module}.weight", checkpoint):
            return module, kind
    return (name, None) if _known(name, checkpoint) else None


def _known(key: str, checkpoint: Checkpoint) -> bool:
    return key in checkpoint.tensors or (key == f"{_HEAD}.weight" and checkpoint.config.tie_word_embeddings)


def _untied(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Give a tied model a head of its own before one of the two is changed without the other, as in PEFT."""
    if not checkpoint.config.tie_word_embeddings or not name.startswith((_EMBEDDING, _HEAD)):
        return checkpoint
    head = f"{_HEAD}.weight"
    shared = dataclasses.replace(checkpoint.tensors[f"{_EMBEDDING}.weight"], name=head)
    return dataclasses.replace(
        checkpoint,
        config=dataclasses.replace(checkpoint.config, tie_word_embeddings=False),
        raw_config=checkpoint.raw_config | {"tie_word_embeddings": False},
        tensors=checkpoint.tensors | {head: shared},
    )


def _check_complete(
    config: AdapterConfig,
    checkpoint: Checkpoint,
    factors: dict[str, dict[str, StoredTensor]],
    whole: dict[str, StoredTensor],
) -> None:
    """Check that the adapter's two files belong together: what one names, the other holds."""
    for key in checkpoint.tensors:
        module, _, kind = key.rpartition(".")
        if kind != "weight":
            continue
        if config.targets(module) and module not in factors:
            raise CheckpointError(f"{ADAPTER_FILE}: factors for {module} are missing", _INCOMPLETE)
        if config.saves(module) and key not in whole:
            raise CheckpointError(f"{ADAPTER_FILE}: {module}, which it saves, is missing", _INCOMPLETE)
        if module in factors and not config.targets(module):
            raise CheckpointError(
                f"{ADAPTER_FILE}: holds factors for {module}, {CONFIG_FILE} does not target it", _INCOMPLETE
            )
    for name in filter(config.needs, config.modules_to_save):
        if not any(f".{key.rpartition('.')[0]}".endswith(f".{name}") for key in whole):
            raise CheckpointError(
                f"{CONFIG_FILE}: modules_to_save names {shown_name(name)}, the base model has none",
                _OTHER_BASE,
            )


def _factors(module: str, parts: dict[str, StoredTensor], base: LazyTensor, config: AdapterConfig) -> Factors:
    """Match a module's factors with its weight and the config."""
    for kind, needed in {"A": True, "B": True, "magnitude": config.use_dora}.items():
        if (kind in parts) != needed:
            state = "is missing" if needed else f"is there, but {CONFIG_FILE} says no use_dora"
            raise CheckpointError(f"{ADAPTER_FILE}: {kind} of {module} {state}", _INCOMPLETE)
    rank = config.rank(module)
    outer, inner = base.shape if module != _EMBEDDING else base.shape[::-1]
    _check_shape(parts["A"], (rank, inner))
    _check_shape(parts["B"], (outer, rank))
    magnitude = parts.get("magnitude")
    if magnitude is not None:
        _check_shape(magnitude, (outer,))
    return Factors(parts["A"], parts["B"], magnitude, config.scaling(module))


def _check_shape(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise CheckpointError(
            f"{ADAPTER_FILE}: tensor {shown_name(tensor.name)} is {shown(list(tensor.shape))}, "
            f"the base and {CONFIG_FILE} need {list(shape)}",
            _OTHER_BASE,
        )
