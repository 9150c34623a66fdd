"""Whichever TensorRT is installed; the only file that imports one, and only when it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from llama_runtime.engine_file import Product
from llama_runtime.errors import MissingExtraError

Wanted = Literal["auto", "tensorrt", "tensorrt-rtx"]
_MODULES: dict[Product, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS: dict[Wanted, str] = {
    "auto": "pip install 'llama-export[trt-rtx]' (GeForce and RTX GPUs), "
    "or tensorrt from NVIDIA's package index (data centre GPUs)",
    "tensorrt": "pip install 'llama-export[trt]', which takes tensorrt from NVIDIA's package index",
    "tensorrt-rtx": "pip install 'llama-export[trt-rtx]'",
}


@dataclass(frozen=True)
class Library:
    """One of the two; their Python interfaces are nearly the same.

    Attributes:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        product: Which.
        version: Of it.
    """

    module: Any
    product: Product
    version: str


def find_library(wanted: Wanted = "auto") -> Library:
    """Import TensorRT, or TensorRT-RTX where there is no TensorRT.

    Args:
        wanted: One of the two by name, or whichever is there.

    Raises:
        MissingExtraError: It is not installed, or what is installed has no libraries.
    """
    causes = []
    for product, name in _MODULES.items():
        if wanted not in ("auto", product):
            continue
        try:
            module = importlib.import_module(name)
            return Library(module, product, str(module.__version__))
        except (ImportError, AttributeError, OSError) as error:
            causes.append(f"{name} ({error})")
    raise MissingExtraError(f"not installed: {', '.join(causes)}", _EXTRAS[wanted])
