"""Our own operators for ONNX Runtime (runtime/kernels), where they were built and this processor runs them.

A session that has the library computes MatMulNBits with it: the graph is the same with and without. Whatever
is wrong with the library costs one line, and ONNX Runtime's own operators run.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "LLAMA_EXPORT_KERNELS"  # "off", or the level of instructions to use
OFF = "off"
VERSION = 1
LIBRARY = Path(__file__).with_name(f"libllama_kernels.{'dylib' if sys.platform == 'darwin' else 'so'}")
PRECISIONS = ("int4", "int8")

_logger = logging.getLogger("llama_runtime")  # without a handler, a line on stderr


@dataclass(frozen=True)
class Kernels:
    """A library that can be used here.

    Attributes:
        path: The library.
        level: Which of its instructions it uses: ``avx512``, ``avx2``, ``neon`` or ``scalar``.
    """

    path: Path
    level: str


def find_kernels(precision: str) -> Kernels | None:
    """The library for bundles of a precision; None where there is none, or it is not wanted or not right."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == OFF or precision not in PRECISIONS:
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
