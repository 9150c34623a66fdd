"""Meta's own folders: ``consolidated.*.pth`` and ``params.json`` -> tensors as Hugging Face has them.

Each file is one shard of every matrix: of its rows or of its columns, which its shape tells. Norms are in all
of them. Within a head, Meta rotates neighbouring rows of wq and wk, Hugging Face those half a head apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llama_export.checkpoint.computed import interleaved_to_half, join_columns, join_rows
from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, shown_name
from llama_export.checkpoint.params import PARAMS_FILE, Sizes, hugging_face_config, read_params
from llama_export.checkpoint.safetensors import read_header
from llama_export.checkpoint.tensor import LazyTensor, StoredTensor
from llama_export.checkpoint.torch_file import read_torch_file
from llama_export.errors import CheckpointError

_SHARD = re.compile(r"consolidated\.(?:(\d+)\.)?(pth|safetensors)")
_EMBEDDING, _HEAD, _UP = "tok_embeddings.weight", "output.weight", "layers.0.feed_forward.w1.weight"
_NAMES = {
    _EMBEDDING: "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    _HEAD: "lm_head.weight",
}
_LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "ffn_norm": "post_attention_layernorm",
}
_ROTATED = ("attention.wq.weight", "attention.wk.weight")
_COMPARED_ROWS = 8
_NOT_TOGETHER = "the shards do not belong together, or one is missing; download all of them again"

Shards = Sequence[Mapping[str, StoredTensor]]


def shard_names(entries: Sequence[str]) -> list[str]:
    """The shards' files among a folder's entries, in the order of their numbers; safetensors before pickles.

    Raises:
        CheckpointError: A number is missing or occurs twice.
    """
    found = [match for entry in entries if (match := _SHARD.fullmatch(entry))]
    suffix = "safetensors" if any(match[2] == "safetensors" for match in found) else "pth"
    numbered = sorted((int(match[1] or 0), match[0]) for match in found if match[2] == suffix)
    for index, (number, name) in enumerate(numbered):
        if number < index:
            raise CheckpointError(f"{name}: shard {number} is there twice", "remove the one that is too many")
        if number > index:
            raise CheckpointError(
                f"consolidated.{index:02}.{suffix}: is missing, {name} is there", DOWNLOAD_AGAIN
            )
    return [name for _, name in numbered]


def read_meta(folder: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Read ``params.json`` and what the shards list.

    Args:
        folder: Holds both.
        names: The shards, as ``shard_names`` returns them.

    Returns:
        What ``config.json`` would say, and the tensors under Hugging Face's names and in its order of rows.

    Raises:
        CheckpointError: A file cannot be read, or the shards do not fit each other or ``params.json``.
        ConfigError: ``params.json`` says something that cannot be honoured exactly.
    """
    params = read_params(folder / PARAMS_FILE)
    shards = [_read_shard(folder / name, name) for name in names]
    _check_alike(names, shards)
    raw_config = hugging_face_config(params, _sizes(params.positive_int("dim"), names, shards))
    head_dim = raw_config["hidden_size"] // raw_config["num_attention_heads"]
    tensors: dict[str, LazyTensor] = {}
    for key in shards[0]:
        if key == _HEAD and raw_config["tie_word_embeddings"]:
            continue
        parts = [shard[key] for shard in shards]
        joined = _join(key, parts, raw_config, head_dim, names)
        tensors[joined.name] = joined
    return raw_config, tensors


def _read_shard(path: Path, name: str) -> dict[str, StoredTensor]:
    read = read_header if path.suffix == ".safetensors" else read_torch_file
    shard: dict[str, StoredTensor] = {}
    for key, tensor in read(path, name).items():
        if key == "rope.freqs":  # a table that params.json determines
            continue
        if not isinstance(tensor, StoredTensor):
            raise CheckpointError(f"{name}: tensor {shown_name(key)} must stand row by row", DOWNLOAD_AGAIN)
        shard[key] = tensor
    return shard


def _check_alike(names: Sequence[str], shards: Shards) -> None:
    """Check that all shards list the same, share their norms, and are not copies of one another."""
    first = shards[0]
    for key in (_EMBEDDING, _UP):
        if key not in first:
            raise CheckpointError(f"{names[0]}: tensor {key} is missing", DOWNLOAD_AGAIN)
    sample = first[_UP].rows(0, min(_COMPARED_ROWS, first[_UP].shape[0]))
    for name, shard in zip(names[1:], shards[1:], strict=True):
        for key in first.keys() ^ shard.keys():
            where, other = (name, names[0]) if key in first else (names[0], name)
            raise CheckpointError(
                f"{where}: tensor {shown_name(key)} is missing, {other} has it", _NOT_TOGETHER
            )
        for key, tensor in first.items():
            if (shard[key].shape, shard[key].dtype) != (tensor.shape, tensor.dtype):
                raise CheckpointError(
                    f"{name}: tensor {shown_name(key)} is {list(shard[key].shape)}, {names[0]} has "
                    f"{list(tensor.shape)}, or of another precision",
                    _NOT_TOGETHER,
                )
            if len(tensor.shape) == 1 and not torch.equal(tensor.read(), shard[key].read()):
                raise CheckpointError(
                    f"{name}: tensor {shown_name(key)} has other values than in {names[0]}",
                    _NOT_TOGETHER,
                )
        if bool(sample.any()) and torch.equal(sample, shard[_UP].rows(0, len(sample))):
            raise CheckpointError(
                f"{name}: holds the same weights as {names[0]}, a copy of it", _NOT_TOGETHER
            )


def _sizes(dim: int, names: Sequence[str], shards: Shards) -> Sizes:
    first, count = shards[0], len(shards)
    embedding, up = first[_EMBEDDING], first[_UP]
    rows, columns = embedding.shape if len(embedding.shape) == 2 else (0, 0)
    if columns * count == dim:  # Llama 1 and 2
        vocab_size = rows
    elif columns == dim:  # Llama 3
        vocab_size = rows * count
    else:
        raise _does_not_fit(_EMBEDDING, embedding, names, f"needs {dim} columns")
    head = first.get(_HEAD)
    # Saved as one storage, the head is the embedding.
    tied = head is None or (count == 1 and replace(head, name=_EMBEDDING) == embedding)
    return Sizes(vocab_size, up.shape[0] * count, tied, str(embedding.dtype).removeprefix("torch."))


def _join(
    key: str, parts: Sequence[StoredTensor], raw_config: dict[str, Any], head_dim: int, names: Sequence[str]
) -> LazyTensor:
    """Make one tensor of its shards, under Hugging Face's name and with its order of rows."""
    name, count = _hugging_face_name(key), len(parts)
    if len(parts[0].shape) == 1:
        return replace(parts[0], name=name)
    needed = _shape(key, raw_config, head_dim)
    if needed is None:
        return replace(parts[0], name=name)  # refused later, by its name
    rows, columns = parts[0].shape if len(parts[0].shape) == 2 else (0, 0)
    by_rows, by_columns = (rows * count, columns) == needed, (rows, columns * count) == needed
    rotated = key.endswith(_ROTATED)
    if not (by_rows or by_columns) or (rotated and (not by_rows or rows % head_dim)):
        raise _does_not_fit(key, parts[0], names, f"needs {list(needed)}")
    turned = [interleaved_to_half(name, part, head_dim) if rotated else part for part in parts]
    if count == 1:
        return replace(turned[0], name=name)
    return join_rows(name, turned) if by_rows else join_columns(name, parts)


def _shape(key: str, raw_config: dict[str, Any], head_dim: int) -> tuple[int, int] | None:
    """The shape of a whole matrix; None where Llama has none of this name."""
    hidden, inter = raw_config["hidden_size"], raw_config["intermediate_size"]
    kv = raw_config["num_key_value_heads"] * head_dim
    if key in (_EMBEDDING, _HEAD):
        return raw_config["vocab_size"], hidden
    shapes = {
        "attention.wq": (hidden, hidden),
        "attention.wk": (kv, hidden),
        "attention.wv": (kv, hidden),
        "attention.wo": (hidden, hidden),
        "feed_forward.w1": (inter, hidden),
        "feed_forward.w2": (hidden, inter),
        "feed_forward.w3": (inter, hidden),
    }
    return shapes.get(_in_layer(key)[1])


def _in_layer(key: str) -> tuple[str, str]:
    """``layers.7.attention.wq.weight`` -> ``"7"``, ``"attention.wq"``; two empty strings for other keys."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", key)
    return (match[1], match[2]) if match else ("", "")


def _hugging_face_name(key: str) -> str:
    layer, inner = _in_layer(key)
    if inner in _LAYER_NAMES:
        return f"model.layers.{layer}.{_LAYER_NAMES[inner]}.weight"
    return _NAMES.get(key, key)


def _does_not_fit(key: str, part: StoredTensor, names: Sequence[str], needs: str) -> CheckpointError:
    shards = "1 shard" if len(names) == 1 else f"each of {len(names)} shards"
    return CheckpointError(
        f"{names[0]}: tensor {shown_name(key)} is {list(part.shape)} in {shards}, {PARAMS_FILE} {needs}",
        "a shard is missing or too many, or params.json is another model's; download all of them again",
    )
