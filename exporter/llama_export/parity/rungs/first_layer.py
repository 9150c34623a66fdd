"""The first layer by itself: its attention, all of it, and both at the last positions of the model."""

from __future__ import annotations

from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import Measurement
from llama_export.parity.report import LayerError
from llama_export.parity.scene import Row, Scene

# Slots that a graph without position_ids needs in front of a token: at most so many bytes of them.
_HIDDEN_CACHE_BYTES = 256 << 20
_FAR_TOKENS = 8
_ATTENTION = ("embed_tokens", "input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj input")


def measure_attention(evidence: Evidence) -> Measurement:
    """What goes into the first layer's attention, and what comes out of it."""
    return _worst([entry for entry in evidence.first_layer if entry.tensor.endswith(_ATTENTION)])


def measure_layer(evidence: Evidence) -> Measurement:
    """Everything that the first layer computes."""
    return _worst(evidence.first_layer)


def measure_far(evidence: Evidence) -> Measurement:
    """The first layer at the last positions: rotary angles are largest there."""
    scene = far_scene(evidence)
    last = scene.first_position + len(scene.rows[0].first)
    limit = evidence.config.context_length
    detail = f"first layer, positions {scene.first_position:,} to {last - 1:,} of {limit:,}"
    return Measurement(_worst(evidence.compare_layers(scene, layers=1)).value, detail)


def far_scene(evidence: Evidence) -> Scene:
    """A few tokens at the last positions that the model has."""
    limit, cache = evidence.config.context_length, evidence.manifest.kv_cache
    if cache.in_place:
        slot_bytes = 4 * cache.num_key_value_heads * cache.head_dim
        limit = min(limit, _HIDDEN_CACHE_BYTES // slot_bytes)
    tokens = evidence.prompts[0].tokens[: min(_FAR_TOKENS, limit)]
    return Scene((Row(tokens),), first_position=limit - len(tokens))


def _worst(errors: list[LayerError]) -> Measurement:
    worst = max(errors, key=lambda entry: entry.error)
    return Measurement(worst.error, f"{len(errors)} tensors; largest in {worst.tensor}")
