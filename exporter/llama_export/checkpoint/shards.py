"""Which files hold the weights, and which tensor stands in which of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llama_export.checkpoint.flax_file import model_name, read_flax_file
from llama_export.checkpoint.head import HEAD_PREFIXES, canonical_name
from llama_export.checkpoint.json_file import (
    DOWNLOAD_AGAIN,
    read_json_object,
    resolve_file,
    shown,
    shown_name,
)
from llama_export.checkpoint.safetensors import read_header
from llama_export.checkpoint.tensor import LazyTensor
from llama_export.checkpoint.torch_file import read_torch_file
from llama_export.errors import CheckpointError
from llama_export.model.config import LlamaConfig

_NOT_TOGETHER = "the checkpoint and its config.json do not belong together; download both again"
_NOT_ITS_INDEX = "the index and its shards do not belong together; download both again"


@dataclass(frozen=True)
class Format:
    """One way in which Hugging Face folders hold tensors.

    Attributes:
        single: The file that holds them all.
        index: The file that says which shard holds which.
        read: Lists a file's tensors; its arguments are the path and what messages call it.
    """

    single: str
    index: str
    read: Callable[[Path, str], Mapping[str, LazyTensor]]


# The first one that a folder has is read: safetensors cannot hold code and can be linked.
FORMATS = (
    Format("model.safetensors", "model.safetensors.index.json", read_header),
    Format("pytorch_model.bin", "pytorch_model.bin.index.json", read_torch_file),
    Format("flax_model.msgpack", "flax_model.msgpack.index.json", read_flax_file),
)


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a checkpoint, before anything is known of the config.

    Attributes:
        format: How they hold tensors.
        listing: The file that says what there is: the single file itself, or the index.
        names: The files, sorted, relative to the folder.
        weight_map: For sharded checkpoints, the file of each tensor; empty for a single file.
    """

    format: Format
    listing: str
    names: tuple[str, ...]
    weight_map: dict[str, str]


def find_weights(folder: Path, entries: Sequence[str]) -> tuple[WeightFiles, ...]:
    """Find the single file or the index of each format; with both there the single file counts.

    Returns:
        One for each format that the folder has, in the order of FORMATS; only the first has to be right.
    """
    found: list[WeightFiles] = []
    for form in FORMATS:
        if form.single in entries:
            found.append(WeightFiles(form, form.single, (form.single,), {}))
        elif form.index in entries:
            found.append(WeightFiles(form, form.index, (), {}) if found else parse_index(folder, form))
    return tuple(found)


def parse_index(folder: Path, form: Format) -> WeightFiles:
    """Read ``model.safetensors.index.json`` or its like.

    Raises:
        CheckpointError: It is malformed, or names a file outside the folder.
    """
    index_file = form.index
    weight_map = read_json_object(folder / index_file, index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index_file}: weight_map is {_got(weight_map)}, must map tensors to files", DOWNLOAD_AGAIN
        )
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _stays_inside(shard):
            raise CheckpointError(
                f"{index_file}: tensor {shown_name(tensor)} is in {shown(shard)}, "
                "must be a file inside the folder",
                "do not use this checkpoint unless you trust where it comes from",
            )
    names = tuple(sorted(set(weight_map.values())))
    return WeightFiles(form, index_file, names, {model_name(key): file for key, file in weight_map.items()})


def _got(weight_map: object) -> str:
    return "missing" if weight_map is None else "empty" if weight_map == {} else shown(weight_map)


def _stays_inside(shard: str) -> bool:
    path = PurePosixPath(shard)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        return False
    return shard.isprintable() and "\\" not in shard


@dataclass(frozen=True)
class FoundTensors:
    """What the headers list, named as in a causal language model's checkpoint.

    Attributes:
        listing: The file that says what there is, for messages.
        tensors: By name.
        origin: The file of each.
    """

    listing: str
    tensors: dict[str, LazyTensor]
    origin: dict[str, str]


def read_tensors(folder: Path, files: WeightFiles, config: LlamaConfig) -> FoundTensors:
    """Read all headers, and check that index and shards agree.

    Args:
        folder: Where the files are.
        files: What ``parse_index`` found, or the single file.
        config: Says whether the language-model head is the embedding.

    Raises:
        CheckpointError: A file is missing or malformed, or a tensor missing or found twice.
    """
    for name in files.names:
        resolve_file(folder / name, shown_name(name))  # all must be there before the first is read
    stored: dict[str, LazyTensor] = {}
    origin: dict[str, str] = {}
    for name in files.names:
        for stored_key, tensor in files.format.read(folder / name, shown_name(name)).items():
            key = canonical_name(stored_key)
            if _is_harmless(key, config):
                continue
            if key in stored:
                raise CheckpointError(
                    f"{name}: tensor {shown_name(key)} is in {origin[key]} too", _NOT_ITS_INDEX
                )
            stored[key], origin[key] = tensor, name
    _check_index(files, origin, config)
    return FoundTensors(files.listing, stored, origin)


def _is_harmless(key: str, config: LlamaConfig) -> bool:
    """Tell tensors that say nothing new: old files store rope's table, tied ones the head again."""
    return key.endswith(".rotary_emb.inv_freq") or (key == "lm_head.weight" and config.tie_word_embeddings)


def _check_index(files: WeightFiles, origin: dict[str, str], config: LlamaConfig) -> None:
    """Check that index and shards say the same, in both directions."""
    if files.listing == files.format.single:
        return
    weight_map = [(canonical_name(key), shard) for key, shard in files.weight_map.items()]
    for key, shard in weight_map:
        if not _is_harmless(key, config) and origin.get(key) != shard:
            raise CheckpointError(
                f"{shown_name(shard)}: tensor {shown_name(key)} is missing, {files.listing} says it is there",
                _NOT_ITS_INDEX,
            )
    listed = {key for key, _ in weight_map}
    for key, shard in origin.items():
        if key not in listed:
            raise CheckpointError(
                f"{shown_name(shard)}: tensor {shown_name(key)} is not in {files.listing}", _NOT_ITS_INDEX
            )


def fit(
    listing: str,
    stored: Mapping[str, LazyTensor],
    config: LlamaConfig,
    origin: Mapping[str, str] | None = None,
) -> dict[str, LazyTensor]:
    """Match names and shapes with the config's, both ways.

    Args:
        listing: The file that says what there is, for messages.
        stored: What was found, named as ``canonical_name`` has it.
        config: What the checkpoint must be; with its head.
        origin: The file of each tensor where they are in several.

    Returns:
        Exactly ``config.tensor_shapes()``, in that order. A head is left out where only hidden states are
        wanted.

    Raises:
        CheckpointError: A tensor is missing, unexplained, or of the wrong shape.
    """
    origin = dict.fromkeys(stored, listing) | dict(origin or {})
    # A lying num_hidden_layers must not make us list millions of names: the gap is found before that.
    if config.num_hidden_layers > len(stored):
        gap = (
            key for index in range(len(stored) + 1) for key in config.layer_shapes(index) if key not in stored
        )
        raise _missing(listing, next(gap), stored)
    shapes = config.tensor_shapes()
    for key, shape in shapes.items():
        if key not in stored:
            raise _missing(listing, key, stored)
        if stored[key].shape != shape:
            raise CheckpointError(
                f"{origin[key]}: tensor {key} is {shown(stored[key].shape)}, config.json needs {list(shape)}",
                _NOT_TOGETHER,
            )
    for key in stored:
        unwanted_head = config.head.task == "feature-extraction" and key.startswith(HEAD_PREFIXES)
        if key not in shapes and not unwanted_head:
            raise CheckpointError(
                f"{origin[key]}: tensor {shown_name(key)} is not explained by config.json, "
                f"the model has {len(shapes)} tensors and no such one",
                "what it is for is unknown, so leaving it out could silently change the model; "
                + _NOT_TOGETHER,
            )
    return {key: stored[key] for key in shapes}


def _missing(listing: str, key: str, stored: Mapping[str, LazyTensor]) -> CheckpointError:
    found = (
        f"it holds {len(stored)} others, such as {shown_name(next(iter(stored)))}"
        if stored
        else "it holds none"
    )
    return CheckpointError(
        f"{listing}: tensor {key} is missing, config.json needs it; {found}", _NOT_TOGETHER
    )
