"""Which precision every weight is stored in: as it is, cast, or in blocks of a few bits."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from llama_export.checkpoint import Checkpoint
from llama_export.errors import OptionError
from llama_export.model.config import LlamaConfig
from llama_export.quantize import BLOCK_SIZES, METHODS, Blocks

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
PRECISION_OF = {dtype: name for name, dtype in PRECISIONS.items()}
BITS = {"int4": 4, "int8": 8}

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
_GATHER_BLOCK_SIZES = (*reversed(BLOCK_SIZES), 16)  # GatherBlockQuantized cannot end a row within a block
DEFAULT_BLOCK_SIZE = 32
GPTQ = "gptq"
QUANTIZERS = (*METHODS, GPTQ)


@dataclass(frozen=True)
class Quantization:
    """How ``int4`` and ``int8`` bundles store their matrices.

    Attributes:
        precision: ``int4`` or ``int8``: what a matrix is stored in unless ``keep`` says otherwise.
        block_size: Values that share a scale: 32, 64 or 128.
        symmetric: Whether zero is always the middle code; otherwise each block has a code of its own for it.
        keep: Pattern and precision, in order; of those that match a module, the last counts. In ``int4``
            bundles the head has 8 bits unless a pattern says otherwise: its error is the logits' own.
        method: How scales are found, one of ``QUANTIZERS``; ``gptq`` needs a text to calibrate with.

    Raises:
        OptionError: A value is not one of those allowed.
    """

    precision: str
    block_size: int = DEFAULT_BLOCK_SIZE
    symmetric: bool = True
    keep: tuple[tuple[str, str], ...] = ()
    method: str = "search"

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            allowed = ", ".join(map(str, BLOCK_SIZES))
            raise OptionError(f"block size is {self.block_size}, must be one of {allowed}")
        if self.method not in QUANTIZERS:
            raise OptionError(f"quantizer is {self.method!r}, must be one of {', '.join(QUANTIZERS)}")


def parse_keep(text: str) -> tuple[tuple[str, str], ...]:
    """Read ``lm_head=int8,layers.0.*=int8``.

    Raises:
        OptionError: No pattern, or a precision that does not exist.
    """
    allowed, found = (*BITS, *PRECISIONS), []
    for entry in text.split(","):
        pattern, _, precision = (part.strip() for part in entry.partition("="))
        if not pattern or precision not in allowed:
            raise OptionError(
                f"--keep has {entry.strip()!r}, needs pattern=precision with one of {', '.join(allowed)}",
                'write it like "lm_head=int8,layers.0.*=int8"',
            )
        found.append((pattern, precision))
    return tuple(found)


def choose_precisions(
    checkpoint: Checkpoint, quantization: Quantization
) -> tuple[dict[str, Blocks | torch.dtype], tuple[str, ...]]:
    """Choose how each weight is stored.

    Norms, biases and the heads of other tasks than text-generation stay float32: together they are small.

    Returns:
        Layout or dtype by name, and what a person should know of it, in sentences.

    Raises:
        OptionError: A pattern matches nothing.
    """
    modules = [
        name.removesuffix(".weight")
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) == 2 and (name.startswith("model.") or name == f"{HEAD}.weight")
    ]
    wanted = _wanted(modules, checkpoint.config, quantization)
    chosen: dict[str, Blocks | torch.dtype] = {}
    uneven: dict[tuple[int, str], dict[str, None]] = {}  # columns and what is done about them: modules, once
    for name, tensor in checkpoint.tensors.items():
        module = name.removesuffix(".weight")
        precision = wanted.get(module, "float32")
        if precision in PRECISIONS:
            chosen[name] = PRECISIONS[precision]
            continue
        columns = tensor.shape[1]
        size, done = _block_size(module == EMBEDDING, columns, quantization.block_size)
        if done:
            uneven.setdefault((columns, done), {})[module.rpartition(".")[2]] = None
        chosen[name] = Blocks(BITS[precision], size, quantization.symmetric) if size else torch.float32
    wished = quantization.block_size
    notes = tuple(
        f"{', '.join(short)}: rows of {columns} do not divide by the block size, {wished}; {done}"
        for (columns, done), short in uneven.items()
    )
    return chosen, notes


def _block_size(is_embedding: bool, columns: int, wished: int) -> tuple[int, str]:
    """The size of a matrix's blocks, 0 for none, and what is done if the wished one does not divide it."""
    if columns % wished == 0:
        return wished, ""
    if not is_embedding:
        return wished, "the last block of a row is shorter"
    size = next((s for s in _GATHER_BLOCK_SIZES if s < wished and columns % s == 0), 0)
    return size, f"the blocks have {size}" if size else "they stay float32, since no block divides them"


def _wanted(modules: list[str], config: LlamaConfig, quantization: Quantization) -> Mapping[str, str]:
    wanted = dict.fromkeys(modules, quantization.precision)
    if quantization.precision == "int4" and config.generates:
        wanted[EMBEDDING if config.tie_word_embeddings else HEAD] = "int8"
    for pattern, precision in quantization.keep:
        matching = [m for m in modules if any(fnmatchcase(m, p) for p in (pattern, f"model.{pattern}"))]
        if not matching:
            near = difflib.get_close_matches(pattern, modules, 1)
            example = near[0] if near else modules[-1]
            raise OptionError(
                f"--keep has the pattern {pattern!r}, no matrix of the checkpoint matches it",
                f"matrices have names like {example}, and * stands for anything",
            )
        wanted |= dict.fromkeys(matching, precision)
    return wanted
