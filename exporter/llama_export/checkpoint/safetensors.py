"""The safetensors header, read and checked without touching the data.

A file is: 8 bytes, N as unsigned little-endian; N bytes of JSON, beginning with ``{`` and perhaps padded
with spaces; then the data. The JSON maps each tensor's name to its dtype, shape and data_offsets
[begin, end) within the data; the tensors MUST cover the data without hole or overlap.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from llama_export.checkpoint.json_file import (
    DOWNLOAD_AGAIN,
    MAX_JSON_BYTES,
    parse_json_object,
    reading,
    resolve_file,
    shown,
    shown_name,
)
from llama_export.checkpoint.tensor import StoredTensor
from llama_export.errors import CheckpointError

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 8
_GIT_LFS = b"version https://git-lfs"


def read_header(path: Path, name: str) -> dict[str, StoredTensor]:
    """Read which tensors a safetensors file holds, and where.

    Args:
        path: The file; a link is followed.
        name: What messages call it.

    Returns:
        The tensors by name, in the order of their bytes.

    Raises:
        CheckpointError: The file is missing, truncated, or not exactly what the format says.
    """
    file = resolve_file(path, name)
    with reading(name), file.open("rb") as stream:
        file_bytes = file.stat().st_size
        start = stream.read(max(_LENGTH_BYTES, len(_GIT_LFS)))
        header_bytes = _header_length(start, file_bytes, name)
        stream.seek(_LENGTH_BYTES)
        header = stream.read(header_bytes)
    if not header.startswith(b"{"):
        raise CheckpointError(
            f"{name}: is not a safetensors file, its header is not a JSON object", DOWNLOAD_AGAIN
        )
    entries = parse_json_object(header, name)
    _check_metadata(entries.pop("__metadata__", {}), name)

    data_start = _LENGTH_BYTES + header_bytes
    tensors = [_parse_entry(key, entry, file, data_start, name) for key, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_coverage(tensors, data_start, file_bytes, name)
    return {tensor.name: tensor for tensor in tensors}


def _header_length(start: bytes, file_bytes: int, name: str) -> int:
    if start == _GIT_LFS:
        raise CheckpointError(
            f"{name}: is a Git LFS pointer, not the weights", "fetch the weights with: git lfs pull"
        )
    if len(start) < _LENGTH_BYTES:
        got = f"has {len(start)} bytes" if start else "is empty"
        raise CheckpointError(f"{name}: {got}, a safetensors file has more", DOWNLOAD_AGAIN)
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{name}: is not a safetensors file, its header would have {length} bytes, "
            f"allowed are {MAX_JSON_BYTES}",
            DOWNLOAD_AGAIN,
        )
    if _LENGTH_BYTES + length > file_bytes:
        raise CheckpointError(
            f"{name}: is truncated, has {file_bytes} bytes, its header alone needs {_LENGTH_BYTES + length}",
            DOWNLOAD_AGAIN,
        )
    return length


def _check_metadata(metadata: object, name: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{name}: __metadata__ must be an object of strings", DOWNLOAD_AGAIN)


def _parse_entry(key: str, entry: object, file: Path, data_start: int, name: str) -> StoredTensor:
    """Check one tensor's dtype, shape and offsets against each other."""
    what = f"{name}: tensor {shown_name(key)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{what} must have dtype, shape and data_offsets, and nothing else", DOWNLOAD_AGAIN
        )
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        raise CheckpointError(
            f"{what} is {shown(dtype_name)}, supported are F32, F16 and BF16",
            "export the float checkpoint that this one was made from",
        )
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(f"{what} has shape {shown(shape)}, must be a list of sizes", DOWNLOAD_AGAIN)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{what} has data_offsets {shown(offsets)}, must be [begin, end]", DOWNLOAD_AGAIN
        )

    dtype, nbytes = _DTYPES[dtype_name], offsets[1] - offsets[0]
    needed = math.prod(shape) * dtype.itemsize
    if nbytes != needed:
        raise CheckpointError(
            f"{what} has {nbytes} bytes, {dtype_name} of shape {shown(shape)} needs {needed}", DOWNLOAD_AGAIN
        )
    return StoredTensor(key, dtype, tuple(shape), file, data_start + offsets[0], nbytes)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _check_coverage(tensors: list[StoredTensor], data_start: int, file_bytes: int, name: str) -> None:
    """Check that the tensors, sorted by offset, cover the data exactly."""
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            fault = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise CheckpointError(
                f"{name}: tensor {shown_name(tensor.name)} {fault}, "
                f"begins at byte {tensor.offset}, must begin at {end}",
                DOWNLOAD_AGAIN,
            )
        end += tensor.nbytes
    if file_bytes < end:
        raise CheckpointError(
            f"{name}: is truncated, has {file_bytes} bytes, its header needs {end}", DOWNLOAD_AGAIN
        )
    if file_bytes > end:
        raise CheckpointError(
            f"{name}: has {file_bytes} bytes, its header accounts for {end} of them", DOWNLOAD_AGAIN
        )
