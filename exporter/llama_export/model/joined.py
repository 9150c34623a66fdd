"""Which modules of a layer read the same input, and may be one matrix where weights are stored anew."""

from __future__ import annotations

PROJECTIONS: dict[str, tuple[str, ...]] = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""The modules by the name that the one has."""
