"""``flax_model.msgpack``: tensors by Hugging Face's names, the way PyTorch has them, without JAX or Flax."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from llama_export.checkpoint.computed import join_flat, transpose
from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, shown_name
from llama_export.checkpoint.msgpack_index import Tree, read_tree
from llama_export.checkpoint.tensor import LazyTensor, StoredTensor
from llama_export.errors import CheckpointError

_CHUNKED = "__msgpack_chunked_array__"  # how Flax marks an array over 1 GiB, which it cuts into flat chunks


def read_flax_file(path: Path, name: str) -> dict[str, LazyTensor]:
    """Read which tensors a file of ``FlaxLlamaModel.save_pretrained`` or its like holds, and where.

    Args:
        path: The file; a link is followed.
        name: What messages call it.

    Returns:
        The tensors by name, in the order of the file.

    Raises:
        CheckpointError: The file is missing, truncated, no such file, or lies about a length.
    """
    tensors: dict[str, LazyTensor] = {}
    for key, tensor in _leaves(read_tree(path, name), "", name):
        named = model_name(key)
        if named in tensors:
            raise CheckpointError(f"{name}: tensor {shown_name(named)} occurs twice", DOWNLOAD_AGAIN)
        # Flax multiplies by [in, out] kernels, PyTorch by [out, in] weights.
        turned = key.endswith("/kernel") and len(tensor.shape) == 2
        tensors[named] = transpose(named, tensor) if turned else replace(tensor, name=named)
    return tensors


def model_name(key: str) -> str:
    """``model/layers/0/mlp/up_proj/kernel`` is ``model.layers.0.mlp.up_proj.weight``; other names stay."""
    *path, last = key.removeprefix("params/").split("/")
    if path and last in ("kernel", "embedding"):
        last = "weight"
    return ".".join([*path, last])


def _leaves(tree: dict[str, Tree], prefix: str, name: str) -> Iterator[tuple[str, LazyTensor]]:
    for key, value in tree.items():
        path = prefix + key
        if isinstance(value, StoredTensor):
            yield path, value
        elif not isinstance(value, dict):
            raise CheckpointError(
                f"{name}: {shown_name(path)} is no tensor, weights alone are read", DOWNLOAD_AGAIN
            )
        elif _CHUNKED in value:
            yield path, _join_chunks(path, value, name)
        else:
            yield from _leaves(value, path + "/", name)


def _join_chunks(path: str, leaf: dict[str, Tree], name: str) -> LazyTensor:
    """Make one array of ``{"shape": {"0": n, ...}, "chunks": {"0": array, ...}}``."""
    sizes, chunks = leaf.get("shape"), leaf.get("chunks")
    wrong = f"{name}: tensor {shown_name(path)} is in chunks that do not make an array of the shape it claims"
    if not isinstance(sizes, dict) or not isinstance(chunks, dict) or not chunks:
        raise CheckpointError(wrong, DOWNLOAD_AGAIN)
    shape = [sizes.get(str(i)) for i in range(len(sizes))]
    parts = [chunks.get(str(i)) for i in range(len(chunks))]
    stored = tuple(part for part in parts if isinstance(part, StoredTensor) and len(part.shape) == 1)
    whole = tuple(size for size in shape if type(size) is int)
    if (
        (len(stored), len(whole)) != (len(parts), len(shape))
        or len({part.dtype for part in stored}) != 1
        or sum(part.shape[0] for part in stored) != math.prod(whole)
    ):
        raise CheckpointError(wrong, DOWNLOAD_AGAIN)
    return join_flat(path, stored, whole)
