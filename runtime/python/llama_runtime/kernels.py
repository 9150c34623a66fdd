"""Our own operators for ONNX Runtime (runtime/kernels), where they were built and this processor runs them.

A session that has the library computes its products with narrow weights and its attention with it: the graph
is the same with and without. Whatever is wrong with the library costs one line, and ONNX Runtime's own
operators run.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from llama_runtime.manifest import Manifest

VARIABLE = "LLAMA_EXPORT_KERNELS"  # "off", or the level of instructions to use
OFF = "off"
VERSION = 1
BLOCKS = ("int4", "int8")  # precisions whose products are operators of com.microsoft
LIBRARY = Path(__file__).with_name(f"libllama_kernels.{'dylib' if sys.platform == 'darwin' else 'so'}")

_logger = logging.getLogger("llama_runtime")  # without a handler, a line on stderr


@dataclass(frozen=True)
class Kernels:
    """A library that can be used here.

    Attributes:
        path: The library.
        level: Which of its instructions it uses: ``amx``, ``avx512``, ``avxvnni``, ``avx2``, ``neon`` or
            ``scalar``.
    """

    path: Path
    level: str


def kernels_for(manifest: Manifest) -> Kernels | None:
    """The library, for a bundle whose graph has operators of com.microsoft; the others' have none of ours.

    To ONNX Runtime the library is all that there is of com.microsoft, unless the graph itself imports that:
    its optimizer then fails over operators of that domain that it puts in. What computes in float16 is for
    GPUs, and the library's operators take float32 alone.
    """
    if manifest.cache is not None and manifest.cache.dtype == "float16":
        return None
    return find_kernels() if manifest.attention == "flash" or manifest.precision in BLOCKS else None


def find_kernels() -> Kernels | None:
    """The library; None where there is none, or it is not wanted or not right."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == OFF:
        return None
    if not LIBRARY.exists():
        if wanted:
            say(f"{VARIABLE} is {wanted}, but the kernels were not built (make kernels)")
        return None
    try:
        library = ctypes.CDLL(str(LIBRARY))
        version = library.llama_kernels_version()
        library.llama_kernels_level.restype = ctypes.c_char_p
        level = library.llama_kernels_level() if version == VERSION else None
    except (OSError, AttributeError) as error:
        say(f"{LIBRARY}: not a library of kernels for this machine ({error})")
        return None
    if version != VERSION:
        say(f"{LIBRARY}: version {version} of the kernels, this runtime uses {VERSION} (make kernels)")
        return None
    if level is None:
        if not wanted:
            return None
        say(f"{VARIABLE} is {wanted}, which the kernels or this processor do not have; {OFF} is for none")
        return None
    return Kernels(LIBRARY, level.decode())


def level_of(kernels: Kernels | None) -> str | None:
    """The instructions that they use; None where ONNX Runtime's own operators run."""
    return None if kernels is None else kernels.level


def say(what: str) -> None:
    """One line, and what follows from it."""
    _logger.warning("%s; ONNX Runtime's own operators are used", what)
