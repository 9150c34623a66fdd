"""Weights in blocks of a few bits: how they are laid out, and how the numbers of a block are found."""

from __future__ import annotations

from llama_export.quantize.blocks import (
    BLOCK_SIZES,
    SCALES,
    Blocks,
    Encode,
    NotFiniteError,
    Part,
    Quantized,
    dequantize,
    in_blocks,
    pack,
    unpack,
    within_bound,
)
from llama_export.quantize.encode import encode, encode_with
from llama_export.quantize.gptq import gptq
from llama_export.quantize.methods import METHODS, Method, quantize
from llama_export.quantize.signed import Signed, signed_codes

__all__ = [
    "BLOCK_SIZES",
    "METHODS",
    "SCALES",
    "Blocks",
    "Encode",
    "Method",
    "NotFiniteError",
    "Part",
    "Quantized",
    "Signed",
    "dequantize",
    "encode",
    "encode_with",
    "gptq",
    "in_blocks",
    "pack",
    "quantize",
    "signed_codes",
    "unpack",
    "within_bound",
]
