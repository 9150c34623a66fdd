"""A Hugging Face folder -> Checkpoint."""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama_export.checkpoint.config import parse_config
from llama_export.checkpoint.fields import CONFIG_FILE
from llama_export.checkpoint.json_file import read_json_object, reading, resolve_file, shown_name
from llama_export.checkpoint.shards import INDEX_FILE, SINGLE_FILE, WeightFiles, collect_tensors, parse_index
from llama_export.checkpoint.tensor import LazyTensor
from llama_export.errors import CheckpointError
from llama_export.model.config import LlamaConfig

_GENERATION_FILE = "generation_config.json"
# Read by whoever runs the model, or binding on them; in lower case.
_COMPANIONS = (
    _GENERATION_FILE,
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
_NOT_CONVERTED = "load it with transformers and write it with save_pretrained, which makes safetensors files"
# What else a folder may hold, and what to do about it; the first that is there is named.
_OTHER_WEIGHTS = {
    "adapter_model.*": "merge the adapter into its base model first, and name the merged folder",
    "pytorch_model*.bin": _NOT_CONVERTED,
    "flax_model*.msgpack": _NOT_CONVERTED,
    "consolidated.*": "convert Meta's files with transformers' convert_llama_weights_to_hf.py",
    "*.gguf": "export the Hugging Face folder that it was made from",
    "model-*.safetensors": f"{INDEX_FILE}, which says what is in which file, got lost; download it again",
}


@dataclass(frozen=True)
class Checkpoint:
    """One model on disk: its facts, and where its weights stand.

    Attributes:
        folder: As the person named it.
        config: Its architecture.
        raw_config: ``config.json``, verbatim.
        dtype: The dtype of its weights; if mixed, that of most of the bytes.
        tensors: Exactly ``config.tensor_shapes()``, in that order.
        weight_files: The real files that hold them, symlinks followed, in the order of their names.
        companions: Files in ``folder`` that travel with the model: tokenizer, templates, licences.
        generation_config: ``generation_config.json``, empty where there is none.
        notes: What a person should know of how the folder was read, in sentences.
    """

    folder: Path
    config: LlamaConfig
    raw_config: dict[str, Any]
    dtype: torch.dtype
    tensors: dict[str, LazyTensor]
    weight_files: tuple[Path, ...]
    companions: tuple[Path, ...]
    generation_config: dict[str, Any]
    notes: tuple[str, ...] = ()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a Hugging Face LLaMA folder, reading its JSON files and headers alone.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors``, or an index and its shards; links are
            followed, so a Hub snapshot is fine.

    Raises:
        CheckpointError: A file is missing, cannot be read, is malformed, or does not fit the others.
        ConfigError: ``config.json`` says something that cannot be honoured exactly.
    """
    entries = _list_folder(folder)
    files = _find_weights(folder, entries)
    raw_config = read_json_object(folder / CONFIG_FILE, CONFIG_FILE)
    config = parse_config(raw_config)
    generation: dict[str, Any] = {}
    if _GENERATION_FILE in entries:
        generation = read_json_object(folder / _GENERATION_FILE, _GENERATION_FILE)
    companions = _find_companions(folder, entries)
    tensors = collect_tensors(folder, files, config)

    bytes_of: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        bytes_of[tensor.dtype] += tensor.nbytes
    return Checkpoint(
        folder=folder,
        config=config,
        raw_config=raw_config,
        dtype=bytes_of.most_common(1)[0][0],
        tensors=tensors,
        weight_files=tuple(resolve_file(folder / name, name) for name in files.names),
        companions=companions,
        generation_config=generation,
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


def _find_weights(folder: Path, entries: list[str]) -> WeightFiles:
    """Find the single file or the index; with both there the single file counts, as in transformers."""
    if SINGLE_FILE in entries:
        return WeightFiles(SINGLE_FILE, (SINGLE_FILE,), {})
    if INDEX_FILE in entries:
        return parse_index(folder / INDEX_FILE)
    neither = f"neither {SINGLE_FILE} nor {INDEX_FILE}"
    for pattern, hint in _OTHER_WEIGHTS.items():
        for name in fnmatch.filter(entries, pattern):
            found = f"{folder}: holds {shown_name(name)}, but {neither}"
            raise CheckpointError(f"{found}; only whole models in safetensors are read so far", hint)
    raise CheckpointError(f"{folder}: holds {neither}", _NO_FOLDER)


def _find_companions(folder: Path, entries: list[str]) -> tuple[Path, ...]:
    names = [name for name in entries if any(fnmatch.fnmatchcase(name.lower(), item) for item in _COMPANIONS)]
    files = [folder / name for name in names if not (folder / name).is_dir()]  # LICENSES/ may be a folder
    for file in files:
        resolve_file(file, file.name)  # a link into nowhere is a file that got lost
    return tuple(files)
