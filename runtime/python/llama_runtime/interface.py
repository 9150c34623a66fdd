"""The graph as the manifest describes it: file, inputs, outputs, cache; and what a path may be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from llama_runtime.known import check_at_least


@dataclass(frozen=True)
class Graph:
    """The ONNX file, and the folder that its external data locations are relative to."""

    path: str
    opset: int
    ir_version: int
    external_data_folder: str

    def __post_init__(self) -> None:
        check_relative_path("path", self.path)
        if self.external_data_folder != ".":
            check_relative_path("external_data_folder", self.external_data_folder)
        check_at_least(1, opset=self.opset, ir_version=self.ir_version)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the graph; a string in ``shape`` names a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Cache:
    """The key/value cache.

    ``{i}`` in a name stands for the layer; ``in_place`` binds one buffer as past and present.
    """

    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    dtype: Literal["float32", "float16", "int8"]
    key_name: str
    value_name: str
    present_key_name: str
    present_value_name: str
    in_place: bool

    def __post_init__(self) -> None:
        check_at_least(
            1,
            num_hidden_layers=self.num_hidden_layers,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
        )
        for field in ("key_name", "value_name", "present_key_name", "present_value_name"):
            if "{i}" not in getattr(self, field):
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}, needs a name with {{i}} for the layer"
                )


@dataclass(frozen=True)
class SoftPrompt:
    """A learned prompt: the file of its keys and values, and how many positions it takes."""

    path: str
    positions: int

    def __post_init__(self) -> None:
        check_relative_path("path", self.path)
        check_at_least(1, positions=self.positions)


def check_relative_path(field: str, path: str) -> None:
    """Refuse a path that could leave the folder, or that means different files on different systems.

    Raises:
        ValueError: Empty, absolute, with a backslash, drive, NUL, or an empty, '.' or '..' part.
    """
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:\x00-\x1f]", path):
        raise ValueError(f"{field} is {path!r}, needs a relative path with '/' and without '..'")
