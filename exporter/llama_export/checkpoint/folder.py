"""A folder, Hugging Face's or Meta's -> Checkpoint."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_export.checkpoint.config import parse_config
from llama_export.checkpoint.fields import CONFIG_FILE, Fields
from llama_export.checkpoint.head import HEAD_PREFIXES, parse_head
from llama_export.checkpoint.json_file import read_json_object, reading, resolve_file, shown_name
from llama_export.checkpoint.meta import read_meta, shard_names
from llama_export.checkpoint.params import PARAMS_FILE, special_ids
from llama_export.checkpoint.shards import FORMATS, WeightFiles, find_weights, fit, read_tensors
from llama_export.checkpoint.soft_prompt import SoftPrompt
from llama_export.checkpoint.tensor import LazyTensor, StoredTensor
from llama_export.errors import CheckpointError
from llama_export.model.config import HeadConfig, LlamaConfig, Task

GENERATION_FILE = "generation_config.json"
# Read by whoever runs the model, or binding on them; in lower case.
_COMPANIONS = (
    GENERATION_FILE,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "license*",
    "notice*",
    "use_policy*",
)
_NO_FOLDER = "name the folder of a checkpoint; `hf download NAME --local-dir FOLDER` makes one from the Hub"
_ORIGINAL = "original"  # where Hugging Face's repositories of Meta's models keep Meta's own files
# What else a folder may hold, and what to do about it; the first that is there is named.
_OTHER_WEIGHTS = {
    "adapter_model.*": "merge the adapter into its base model first, and name the merged folder",
    "consolidated.*": f"{PARAMS_FILE}, which belongs to Meta's files, got lost; download it again",
    "*.gguf": "export the Hugging Face folder that it was made from",
    "model-*.safetensors": "model.safetensors.index.json, which says what is where, got lost; download it",
    "pytorch_model-*.bin": "pytorch_model.bin.index.json, which says what is where, got lost; download it",
    "flax_model-*.msgpack": "flax_model.msgpack.index.json, which says what is where, got lost; download it",
    "tf_model.h5": "load it with transformers and write it with save_pretrained, which makes safetensors",
}


@dataclass(frozen=True)
class Checkpoint:
    """One model on disk: its facts, and where its weights stand.

    Attributes:
        folder: As the person named it.
        config: Its architecture.
        config_file: ``config.json``, or Meta's ``params.json``.
        raw_config: ``config.json``, verbatim, or what it would say.
        dtype: The dtype of its weights; if mixed, that of most of the bytes.
        tensors: Exactly ``config.tensor_shapes()``, in that order.
        weight_files: The real files that hold them, symlinks followed, in the order of their names.
        companions: Files that travel with the model: tokenizer, templates, licences; some of Meta's may
            stand one folder up.
        generation_config: ``generation_config.json``, empty where there is none.
        notes: What a person should know of how the folder was read, in sentences.
        adapters: Folders of the adapters that were merged, in order; their files end ``weight_files``.
        soft_prompt: Learned positions in front of every text; its file is none of ``weight_files``.
    """

    folder: Path
    config: LlamaConfig
    config_file: Path
    raw_config: dict[str, Any]
    dtype: torch.dtype
    tensors: dict[str, LazyTensor]
    weight_files: tuple[Path, ...]
    companions: tuple[Path, ...]
    generation_config: dict[str, Any]
    notes: tuple[str, ...] = ()
    adapters: tuple[Path, ...] = ()
    soft_prompt: SoftPrompt | None = None

    def read(self, name: str) -> Tensor:
        """A weight's values, in the dtype that it has on disk."""
        return self.tensors[name].read()

    def source_name(self, file: Path) -> str:
        """What the manifest calls one of ``weight_files``: adapters' files have one name in all folders."""
        position = self.weight_files.index(file) - len(self.weight_files) + len(self.adapters)
        return file.name if position < 0 else f"adapters/{position}/{file.name}"

    @property
    def source_files(self) -> dict[str, Path]:
        """Every file that weights and learned positions are read from, by ``source_name``."""
        files = {self.source_name(file): file for file in self.weight_files}
        if self.soft_prompt is not None:
            file = self.soft_prompt.tensor.file
            files[f"adapters/{len(self.adapters)}/{file.name}"] = file
        return files


def open_checkpoint(
    folder: Path, task: Task | None = None, lent: Mapping[str, StoredTensor] | None = None
) -> Checkpoint:
    """Open a LLaMA checkpoint in any layout, reading its JSON files and headers alone.

    Args:
        folder: Hugging Face's (``config.json`` with safetensors, ``torch.save``'s files or Flax's, in one
            file or with an index and shards) or Meta's (``params.json`` with ``consolidated.*``); links are
            followed, so a Hub snapshot is fine.
        task: What it is opened for; None is what it was saved for.
        lent: The heads of adapters, taken where the task needs one that the folder has not; None where
            there are no adapters.

    Raises:
        CheckpointError: A file is missing, cannot be read, is malformed, or does not fit the others.
        ConfigError: ``config.json`` or ``params.json`` says something that cannot be honoured exactly.
        OptionError: It has not the head that ``task`` needs.
    """
    entries = _list_folder(folder)
    found, shards = find_weights(folder, entries), shard_names(entries)
    if found:
        return _open_hugging_face(folder, entries, found, shards, task, lent)
    if shards and PARAMS_FILE in entries:
        return _open_meta(folder, entries, shards, task, lent)
    if (folder / _ORIGINAL / PARAMS_FILE).is_file():
        opened = open_checkpoint(folder / _ORIGINAL, task, lent)
        return replace(
            opened, notes=(f"read from {_ORIGINAL}/, {folder} has no other weights", *opened.notes)
        )
    raise _no_weights(folder, entries)


def _open_hugging_face(
    folder: Path,
    entries: list[str],
    formats: tuple[WeightFiles, ...],
    shards: list[str],
    task: Task | None,
    lent: Mapping[str, StoredTensor] | None,
) -> Checkpoint:
    files, *others = formats
    config_file = folder / CONFIG_FILE
    raw_config = read_json_object(config_file, CONFIG_FILE)
    config = parse_config(raw_config)
    companions = _find_companions(folder, entries)
    found = read_tensors(folder, files, config)
    config, raw_config, stored = _with_head(config, raw_config, found.tensors, task, lent)
    tensors = fit(found.listing, stored, config, found.origin)
    unread = [other.listing for other in others] + shards[:1]
    notes = [f"read from {files.listing}; the folder holds {', '.join(unread)} too"] if unread else []
    if raw_config.get("pretraining_tp") not in (None, 1):
        notes.append("pretraining_tp is ignored, as in transformers: it changes no number")
    return _checkpoint(folder, config_file, raw_config, config, tensors, files.names, companions, notes)


def _open_meta(
    folder: Path,
    entries: list[str],
    shards: list[str],
    task: Task | None,
    lent: Mapping[str, StoredTensor] | None,
) -> Checkpoint:
    companions = _find_companions(folder, entries)
    above = _companions_above(folder, {path.name for path in companions})
    companions = tuple(sorted([*companions, *above], key=lambda path: path.name))
    tokenizer = next((path for path in companions if path.name == "tokenizer.model"), None)
    raw_config, tensors = read_meta(folder, shards)
    raw_config |= special_ids(tokenizer, raw_config["vocab_size"])
    config, raw_config, tensors = _with_head(parse_config(raw_config), raw_config, tensors, task, lent)
    tensors = fit(shards[0], tensors, config)
    return _checkpoint(folder, folder / PARAMS_FILE, raw_config, config, tensors, shards, companions, [])


def _with_head(
    config: LlamaConfig,
    raw_config: dict[str, Any],
    tensors: dict[str, LazyTensor],
    task: Task | None,
    lent: Mapping[str, StoredTensor] | None,
) -> tuple[LlamaConfig, dict[str, Any], dict[str, LazyTensor]]:
    """Decide on the head; where an adapter brings it, it takes the place of the folder's own."""
    shapes = None if lent is None else {key: tensor.shape for key, tensor in lent.items()}
    lent = lent or {}
    config = replace(config, head=parse_head(Fields(raw_config), tensors, task, shapes))
    brought = {key: lent[key] for key in config.head_shapes() if key in lent and key not in tensors}
    if not brought:
        return config, raw_config, tensors
    for key, tensor in brought.items():
        if tensor.shape != (needed := config.head_shapes()[key]):
            raise CheckpointError(
                f"{tensor.file.name}: tensor {key} is {list(tensor.shape)}, the base needs {list(needed)}",
                "name the checkpoint that the adapter was trained on",
            )
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith(HEAD_PREFIXES)}
    raw_config = raw_config | {"architectures": [config.architecture]} | _label_names(config.head)
    return config, raw_config, own | brought


def _label_names(head: HeadConfig) -> dict[str, Any]:
    """How config.json names the labels; empty where the head has none."""
    if not head.labels:
        return {}
    by_number = {str(index): label for index, label in enumerate(head.labels)}
    return {"id2label": by_number, "label2id": {label: index for index, label in enumerate(head.labels)}}


def _checkpoint(
    folder: Path,
    config_file: Path,
    raw_config: dict[str, Any],
    config: LlamaConfig,
    tensors: dict[str, LazyTensor],
    names: Sequence[str],
    companions: tuple[Path, ...],
    notes: Sequence[str],
) -> Checkpoint:
    generation: dict[str, Any] = {}
    for path in companions:
        if path.name == GENERATION_FILE:
            generation = read_json_object(path, GENERATION_FILE)
    bytes_of: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        bytes_of[tensor.dtype] += tensor.nbytes
    return Checkpoint(
        folder=folder,
        config=config,
        config_file=config_file,
        raw_config=raw_config,
        dtype=bytes_of.most_common(1)[0][0],
        tensors=tensors,
        weight_files=tuple(resolve_file(folder / name, name) for name in names),
        companions=companions,
        generation_config=generation,
        notes=tuple(notes),
    )


def _list_folder(folder: Path) -> list[str]:
    """Return the sorted names of what is in the folder."""
    try:
        with reading(str(folder)):
            return sorted(entry.name for entry in folder.iterdir())
    except CheckpointError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            error = CheckpointError(f"{folder}: no such folder", _NO_FOLDER)
        elif isinstance(error.__cause__, NotADirectoryError):
            error = CheckpointError(f"{folder}: is a file, must be a folder", "name the folder it is in")
        raise error from error.__cause__


def _no_weights(folder: Path, entries: list[str]) -> CheckpointError:
    none = f"none of {', '.join(form.single for form in FORMATS)}, nor an index of shards"
    for pattern, hint in _OTHER_WEIGHTS.items():
        for name in fnmatch.filter(entries, pattern):
            return CheckpointError(f"{folder}: holds {shown_name(name)}, but {none}", hint)
    return CheckpointError(f"{folder}: holds {none}", _NO_FOLDER)


def _find_companions(folder: Path, entries: list[str]) -> tuple[Path, ...]:
    names = [name for name in entries if any(fnmatch.fnmatchcase(name.lower(), item) for item in _COMPANIONS)]
    files = [folder / name for name in names if not (folder / name).is_dir()]  # LICENSES/ may be a folder
    for file in files:
        resolve_file(file, file.name)  # a link into nowhere is a file that got lost
    return tuple(files)


def _companions_above(folder: Path, present: set[str]) -> list[Path]:
    """What belongs to Meta's files but stands one folder up: the tokenizer that the sizes of a model share.

    Hugging Face's repositories keep Meta's files in a folder of their own: there all above belongs to them.
    """
    above = folder.resolve().parent
    names = sorted(entry.name for entry in above.iterdir()) if os.access(above, os.R_OK) else []
    shared = "tokenizer.model" in names and "tokenizer.model" not in present
    if not shared and folder.resolve().name != _ORIGINAL:
        return []
    return [path for path in _find_companions(above, names) if path.name not in present]
