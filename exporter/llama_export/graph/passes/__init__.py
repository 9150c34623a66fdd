"""Rewrites of the assembled graph. Each says what it requires and what it ensures; numbers never change."""

from __future__ import annotations

from llama_export.graph.passes.blocks import BlockLayout, store_weights_in_blocks
from llama_export.graph.passes.cache import KEY_SCALE, VALUE_SCALE, store_cache_in_int8
from llama_export.graph.passes.dequantize import (
    SignedLayout,
    separate_head,
    store_weights_dequantized,
)
from llama_export.graph.passes.half import compute_in_half, drop_bias
from llama_export.graph.passes.projections import join_projections
from llama_export.graph.passes.reshape import simplify_reshapes
from llama_export.graph.passes.residual_norm import fuse_residual_norm
from llama_export.graph.passes.storage import store_weights_as
from llama_export.graph.passes.widening import widen_in_products

__all__ = [
    "KEY_SCALE",
    "VALUE_SCALE",
    "BlockLayout",
    "SignedLayout",
    "compute_in_half",
    "drop_bias",
    "fuse_residual_norm",
    "join_projections",
    "separate_head",
    "simplify_reshapes",
    "store_cache_in_int8",
    "store_weights_as",
    "store_weights_dequantized",
    "store_weights_in_blocks",
    "widen_in_products",
]
