"""Rotary embedding: ``rope_theta`` and ``rope_scaling`` (4.x) or ``rope_parameters`` (5.x) -> RopeConfig."""

from __future__ import annotations

from dataclasses import asdict

from llama_export.checkpoint.fields import CONFIG_FILE, NOT_YET, Fields
from llama_export.checkpoint.json_file import shown, shown_name
from llama_export.errors import ConfigError
from llama_export.model.config import RopeConfig

_LLAMA1_THETA = 10000.0
_SUPPORTED = 'supported so far are "default" and "llama3"'
_TYPELESS = ("rope_theta", "partial_rotary_factor")
_TWO_ANSWERS = "remove the one that is not true of the checkpoint"


def parse_rope(fields: Fields) -> RopeConfig:
    """Read the rotary embedding, in either spelling.

    Args:
        fields: The whole of ``config.json``.

    Raises:
        ConfigError: The type is not supported, a parameter is missing or out of range, or two places
            say different things.
    """
    blocks = [
        _block(fields, key)
        for key in ("rope_parameters", "rope_scaling")
        if fields.get(key) not in (None, {})
    ]
    theta = _one_theta([fields, *blocks])
    _refuse_partial([fields, *blocks])
    ropes = [_parse_block(fields, block, theta) for block in blocks]
    if not ropes:
        return RopeConfig(rope_theta=theta)
    first, last = asdict(ropes[0]), asdict(ropes[-1])
    for key, value in first.items():
        if value != last[key]:
            raise _contradiction(blocks[0].prefix + key, value, blocks[-1].prefix + key, last[key])
    return ropes[0]


def _block(fields: Fields, key: str) -> Fields:
    block = fields.get(key)
    if not isinstance(block, dict):
        raise fields.wrong(key, "must be an object")
    for name, value in block.items():
        if isinstance(value, dict):
            got = f"{CONFIG_FILE}: {key} holds an object for {shown_name(name)}"
            raise ConfigError(f"{got}, only one rotary embedding for all layers is supported so far", NOT_YET)
    return Fields(block, f"{key}.")


def _one_theta(places: list[Fields]) -> float:
    """Read ``rope_theta`` wherever it stands; all places must agree."""
    found = [
        (place.prefix + "rope_theta", place.positive_float("rope_theta"))
        for place in places
        if place.get("rope_theta") is not None
    ]
    for where, theta in found[1:]:
        if theta != found[0][1]:
            raise _contradiction(*found[0], where, theta)
    return found[0][1] if found else _LLAMA1_THETA


def _refuse_partial(places: list[Fields]) -> None:
    for place in places:
        if place.positive_float("partial_rotary_factor", absent=1.0) != 1.0:
            raise place.unsupported("partial_rotary_factor", "only 1 is supported so far")


def _parse_block(fields: Fields, block: Fields, theta: float) -> RopeConfig:
    rope_type = _rope_type(block)
    if rope_type == "default":
        return RopeConfig(rope_theta=theta)
    rope = RopeConfig(
        rope_type=rope_type,
        rope_theta=theta,
        factor=block.positive_float("factor"),
        low_freq_factor=block.positive_float("low_freq_factor"),
        high_freq_factor=block.positive_float("high_freq_factor"),
        original_max_position_embeddings=block.positive_int("original_max_position_embeddings"),
    )
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise block.wrong("high_freq_factor", f"must be above low_freq_factor, {rope.low_freq_factor}")
    # transformers 5 lets a top-level value overrule the block's, so two values would be two models.
    key, original = "original_max_position_embeddings", rope.original_max_position_embeddings
    if fields.positive_int(key, absent=original) != original:
        raise _contradiction(key, fields.get(key), block.prefix + key, original)
    return rope


def _rope_type(block: Fields) -> str:
    """Read ``rope_type``, or ``type`` as it was called at first."""
    new, old = block.get("rope_type"), block.get("type")
    if new is not None and old is not None and new != old:
        raise _contradiction(block.prefix + "rope_type", new, block.prefix + "type", old)
    key = "type" if new is None and old is not None else "rope_type"
    if new is None and old is None:
        # transformers 5 reads {"rope_theta": ...} alone as default; with more in it, a type was lost.
        if any(value is not None for name, value in block.values.items() if name not in _TYPELESS):
            raise block.wrong(key, _SUPPORTED)
        return "default"
    if block.get(key) not in ("default", "llama3"):
        raise block.unsupported(key, _SUPPORTED)
    return str(block.get(key))


def _contradiction(where: str, value: object, elsewhere: str, other: object) -> ConfigError:
    return ConfigError(
        f"{CONFIG_FILE}: {where} is {shown(value)}, but {elsewhere} is {shown(other)}, must be the same",
        _TWO_ANSWERS,
    )
