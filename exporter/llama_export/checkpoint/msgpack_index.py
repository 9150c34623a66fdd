"""The MessagePack that Flax writes, walked without reading its arrays: a tree of names and byte ranges.

Known are maps with string keys, strings, sizes, true and false, and the extension of type 1: an array,
which holds ``[shape, dtype, bytes]`` as MessagePack again. Every length that the file claims is checked
against what is left of whatever surrounds it, before anything is read or made; all else is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import torch

from llama_export.checkpoint.json_file import DOWNLOAD_AGAIN, reading, resolve_file, shown, shown_name
from llama_export.checkpoint.tensor import StoredTensor
from llama_export.errors import CheckpointError

Tree = dict[str, "Tree"] | StoredTensor | int | bool

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_ARRAY = 1  # flax.serialization's extension type
_MAX_DEPTH, _MAX_TEXT_BYTES, _MAX_DIMENSIONS = 32, 1 << 10, 8
# First byte to how many bytes of length follow it, for values whose length is not in the first byte itself.
_STRINGS, _BINARIES = {0xD9: 1, 0xDA: 2, 0xDB: 4}, {0xC4: 1, 0xC5: 2, 0xC6: 4}
_ARRAYS, _MAPS, _EXTENSIONS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}, {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_UNSIGNED = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}


def read_tree(path: Path, name: str) -> dict[str, Tree]:
    """Read the outermost map, and everything in it but the arrays' values.

    Args:
        path: The file; a link is followed.
        name: What messages call it.

    Raises:
        CheckpointError: The file is missing, truncated, holds anything else, or lies about a length.
    """
    file = resolve_file(path, name)
    with reading(name), file.open("rb") as stream:
        walk = _Walk(stream, file, name)
        tree = walk.value("", walk.file_bytes, 0)
        if not isinstance(tree, dict):
            raise walk.damaged("must be a map of tensors by name")
        if stream.tell() != walk.file_bytes:
            raise walk.damaged(f"has {walk.file_bytes} bytes, its map accounts for {stream.tell()} of them")
    return tree


class _Walk:
    """One way through a file; ``end`` is always where whatever surrounds the next value ends."""

    def __init__(self, stream: BinaryIO, file: Path, name: str) -> None:
        self._stream = stream
        self._file = file
        self._name = name
        self.file_bytes = file.stat().st_size

    def damaged(self, what: str) -> CheckpointError:
        """Make the error that says what is wrong with the file."""
        return CheckpointError(f"{self._name}: {what}", DOWNLOAD_AGAIN)

    def value(self, key: str, end: int, depth: int) -> Tree:
        """Read the value that belongs to ``key``."""
        first = self._byte(end)
        if 0x80 <= first <= 0x8F or first in _MAPS:
            length = first & 0x0F if first not in _MAPS else self._number(_MAPS[first], end)
            return self._map(key, length, end, depth + 1)
        if first in _FIXED_EXTENSIONS or first in _EXTENSIONS:
            fixed = _FIXED_EXTENSIONS.get(first)
            length = self._number(_EXTENSIONS[first], end) if fixed is None else fixed
            return self._array(key, length, end)
        if first in (0xC2, 0xC3):
            return first == 0xC3
        return self._size(first, end)

    def _map(self, key: str, length: int, end: int, depth: int) -> dict[str, Tree]:
        if depth > _MAX_DEPTH:
            raise self.damaged(f"is nested over {_MAX_DEPTH} deep")
        self._check_room(2 * length, end)  # a key and a value have a byte each, at least
        entries: dict[str, Tree] = {}
        for _ in range(length):
            inner = self._text(end)
            if inner in entries:
                raise self.damaged(f"has {shown_name(inner)} twice in one map")
            entries[inner] = self.value(f"{key}/{inner}", end, depth)
        return entries

    def _array(self, key: str, length: int, end: int) -> StoredTensor:
        """Read ``[shape, dtype, bytes]`` up to the bytes, and step over them."""
        what = f"tensor {shown_name(key.lstrip('/'))}"
        kind = self._byte(end)
        self._check_room(length, end)
        end = self._stream.tell() + length
        if kind != _ARRAY:
            raise self.damaged(f"{what} is an extension of type {kind}, read are arrays, type {_ARRAY}")
        if self._list_length(end) != 3:
            raise self.damaged(f"{what} must be [shape, dtype, bytes]")
        dimensions = self._list_length(end)
        if dimensions > _MAX_DIMENSIONS:
            raise self.damaged(f"{what} has {dimensions} dimensions, allowed are {_MAX_DIMENSIONS}")
        shape = tuple(self._size(self._byte(end), end) for _ in range(dimensions))
        dtype_name = self._text(end)
        if dtype_name not in _DTYPES:
            raise CheckpointError(
                f"{self._name}: {what} is {shown(dtype_name)}, supported are {', '.join(_DTYPES)}",
                "export the float checkpoint that this one was made from",
            )
        first = self._byte(end)
        if first not in _BINARIES:
            raise self.damaged(f"{what} must be [shape, dtype, bytes]")
        nbytes, begin = self._number(_BINARIES[first], end), self._stream.tell()
        needed = math.prod(shape) * _DTYPES[dtype_name].itemsize
        if nbytes != needed or begin + nbytes != end:
            raise self.damaged(
                f"{what} has {end - begin} bytes and claims {nbytes}, {dtype_name} of shape {list(shape)} "
                f"needs {needed}"
            )
        self._stream.seek(end)
        return StoredTensor(key, _DTYPES[dtype_name], shape, self._file, begin, nbytes)

    def _list_length(self, end: int) -> int:
        first = self._byte(end)
        if 0x90 <= first <= 0x9F:
            return first & 0x0F
        if first not in _ARRAYS:
            raise self._unknown(first)
        length = self._number(_ARRAYS[first], end)
        self._check_room(length, end)
        return length

    def _text(self, end: int) -> str:
        first = self._byte(end)
        if first not in _STRINGS and not 0xA0 <= first <= 0xBF:
            raise self._unknown(first)
        length = self._number(_STRINGS[first], end) if first in _STRINGS else first & 0x1F
        if length > _MAX_TEXT_BYTES:
            raise self.damaged(f"has a name of {length} bytes, allowed are {_MAX_TEXT_BYTES}")
        try:
            return self._bytes(length, end).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"has a name that is not UTF-8 before byte {self._stream.tell()}") from error

    def _size(self, first: int, end: int) -> int:
        if first <= 0x7F:
            return first
        if first not in _UNSIGNED:
            raise self._unknown(first)
        return self._number(_UNSIGNED[first], end)

    def _unknown(self, first: int) -> CheckpointError:
        where = self._stream.tell() - 1
        return self.damaged(
            f"is not what Flax writes: byte {where} is 0x{first:02x}, which has no meaning there"
        )

    def _number(self, nbytes: int, end: int) -> int:
        return int.from_bytes(self._bytes(nbytes, end), "big")

    def _byte(self, end: int) -> int:
        return self._bytes(1, end)[0]

    def _bytes(self, nbytes: int, end: int) -> bytes:
        self._check_room(nbytes, end)
        data = self._stream.read(nbytes)
        if len(data) < nbytes:
            raise self.damaged("ends early")
        return data

    def _check_room(self, nbytes: int, end: int) -> None:
        begin = self._stream.tell()
        if begin + nbytes > end:
            raise self.damaged(
                f"is truncated or lies about a length: {nbytes} bytes are claimed at byte {begin}, "
                f"{end - begin} are left"
            )
