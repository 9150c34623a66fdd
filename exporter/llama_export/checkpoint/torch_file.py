"""What ``torch.save`` wrote: names, shapes and places, read without running any of it or reading the data.

A file is a zip archive whose records are stored as they are: ``data.pkl`` describes the tensors,
``data/<key>`` holds the bytes of each storage, which several tensors may view.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import torch

from llama_export.checkpoint.computed import transpose
from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, reading, resolve_file, shown, shown_name
from llama_export.checkpoint.tensor import LazyTensor, StoredTensor
from llama_export.errors import CheckpointError

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_PICKLE_BYTES = 100_000_000
_ZIP, _GIT_LFS = b"PK\x03\x04", b"version https://git-lfs"
_LOCAL_HEADER_BYTES = 30
_UNTRUSTED = "do not use this checkpoint unless you trust where it comes from"
_SAVE_AGAIN = "load it with PyTorch where you trust it, and write it again with torch.save"


def read_torch_file(path: Path, name: str) -> dict[str, LazyTensor]:
    """Read which tensors a file of ``torch.save`` holds, and where.

    Only the unpickler for weights is used, which makes tensors and plain containers and calls nothing else.

    Args:
        path: The file; a link is followed.
        name: What messages call it.

    Returns:
        The tensors by name, in the order in which they were saved.

    Raises:
        CheckpointError: The file is missing, no dictionary of tensors, would run code, or lies about sizes.
    """
    file = resolve_file(path, name)
    with reading(name):
        records = _read_records(file, name)
        state = _unpickle(file, name)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{name}: must hold a dictionary of tensors by name", _SAVE_AGAIN)
    return {
        key: _place(key, value, file, records, name)
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def _read_records(file: Path, name: str) -> dict[int, int]:
    """Check the archive; return the offset and size of every storage.

    Records that are compressed are refused, so that a file cannot hold more than its own length.
    """
    with file.open("rb") as stream:
        start = stream.read(len(_GIT_LFS))
        if start == _GIT_LFS:
            raise CheckpointError(
                f"{name}: is a Git LFS pointer, not the weights", "fetch them with: git lfs pull"
            )
        if not start.startswith(_ZIP):
            raise _not_a_zip(start, name)
        try:
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise CheckpointError(f"{name}: is truncated or damaged ({error})", DOWNLOAD_AGAIN) from error
        file_bytes = file.stat().st_size
        records: dict[int, int] = {}
        for entry in entries:
            what = f"{name}: record {shown_name(entry.filename)}"
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise CheckpointError(
                    f"{what} is compressed, torch.save stores records as they are", _UNTRUSTED
                )
            if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE_BYTES:
                got = f"{what} has {entry.file_size} bytes, allowed are {_MAX_PICKLE_BYTES}"
                raise CheckpointError(got, _UNTRUSTED)
            stream.seek(entry.header_offset)
            header = stream.read(_LOCAL_HEADER_BYTES)
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            begin = entry.header_offset + _LOCAL_HEADER_BYTES + lengths
            if begin + entry.file_size > file_bytes:
                raise CheckpointError(f"{what} ends behind the end of the file", DOWNLOAD_AGAIN)
            if entry.filename.partition("/")[2].startswith("data/"):
                records[begin] = entry.file_size
            if entry.filename.rpartition("/")[2] == "byteorder":
                stream.seek(begin)
                if stream.read(entry.file_size) != b"little":
                    raise CheckpointError(
                        f"{name}: is big-endian, only little-endian files are read", _SAVE_AGAIN
                    )
    return records


def _not_a_zip(start: bytes, name: str) -> CheckpointError:
    if not start:
        return CheckpointError(f"{name}: is empty", DOWNLOAD_AGAIN)
    if start[0] == 0x80:  # a pickle
        return CheckpointError(
            f"{name}: is a bare pickle, as PyTorch wrote before 1.6; only its zip files are read", _SAVE_AGAIN
        )
    return CheckpointError(f"{name}: is not a file of torch.save, which is a zip archive", DOWNLOAD_AGAIN)


def _unpickle(file: Path, name: str) -> object:
    try:
        # On the meta device a tensor knows its shape and where its storage begins, and has no memory.
        return torch.load(file, map_location="meta", weights_only=True, mmap=True)
    except UnpicklingError as error:
        named = str(error).partition("GLOBAL ")[2].partition(" ")[0]
        what = f"calls {shown_name(named)}" if named else "holds more than tensors"
        raise CheckpointError(
            f"{name}: {what}, only tensors by name are read, and no code is run", _UNTRUSTED
        ) from error
    except Exception as error:  # whatever a crafted pickle makes the unpickler stumble over
        reason = shown(str(error).partition("\n")[0])
        raise CheckpointError(f"{name}: cannot be read: {reason}", DOWNLOAD_AGAIN) from error


def _place(key: str, value: torch.Tensor, file: Path, records: dict[int, int], name: str) -> LazyTensor:
    """Say where a tensor's values stand, if they are what the model can use."""
    what = f"{name}: tensor {shown_name(key)}"
    if value.layout != torch.strided or value.is_quantized or value.dtype not in _DTYPES:
        got = str(value.dtype).removeprefix("torch.") + (" (sparse)" if value.is_sparse else "")
        raise CheckpointError(
            f"{what} is {got}, supported are float32, float16 and bfloat16",
            "export the float checkpoint that this one was made from",
        )
    storage, size = value.untyped_storage(), value.dtype.itemsize
    begin = storage._checkpoint_offset
    if begin is None or records.get(begin) != storage.nbytes():
        raise CheckpointError(f"{what} does not stand where torch.save puts it, or not whole", _SAVE_AGAIN)
    first = int(value.storage_offset()) * size
    last = first + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) * size + size
    if value.numel() and last > storage.nbytes():
        raise CheckpointError(f"{what} is larger than the data that the file has for it", DOWNLOAD_AGAIN)
    stored = StoredTensor(key, value.dtype, tuple(value.shape), file, begin + first, value.nbytes)
    if value.is_contiguous():
        return stored
    if value.ndim == 2 and value.T.is_contiguous():
        return transpose(key, replace(stored, shape=stored.shape[::-1]))
    raise CheckpointError(
        f"{what} is a view with strides {list(value.stride())}, its values must stand in order", _SAVE_AGAIN
    )
