"""Rotary embedding: ``rope_theta`` and ``rope_scaling`` (4.x) or ``rope_parameters`` (5.x) -> RopeConfig."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llama_export.checkpoint.fields import CONFIG_FILE, NOT_YET, Fields
from llama_export.checkpoint.json_file import shown, shown_name
from llama_export.errors import ConfigError
from llama_export.model.config import ROPE_TYPES, RopeConfig

_LLAMA1_THETA = 10000.0
_SUPPORTED = "supported are " + ", ".join(f'"{name}"' for name in ROPE_TYPES)
_TYPELESS = ("rope_theta", "partial_rotary_factor")
_TWO_ANSWERS = "remove the one that is not true of the checkpoint"


def parse_rope(fields: Fields, head_dim: int) -> RopeConfig:
    """Read the rotary embedding, in either spelling.

    Args:
        fields: The whole of ``config.json``.
        head_dim: D; ``longrope`` has D / 2 factors.

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
    ropes = [_parse_block(fields, block, theta, head_dim) for block in blocks]
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


def _parse_block(fields: Fields, block: Fields, theta: float, head_dim: int) -> RopeConfig:
    rope_type = _rope_type(block)
    match rope_type:
        case "default":
            return RopeConfig(rope_theta=theta)
        case "linear":
            parsed: dict[str, Any] = {"factor": block.positive_float("factor")}
        case "dynamic":
            parsed = _dynamic(fields, block, head_dim)
        case "yarn":
            parsed = _yarn(fields, block, theta)
        case "longrope":
            parsed = _longrope(fields, block, head_dim)
        case _:
            parsed = _llama3(fields, block)
    return RopeConfig(rope_type=rope_type, rope_theta=theta, **parsed)


def _llama3(fields: Fields, block: Fields) -> dict[str, Any]:
    low, high = block.positive_float("low_freq_factor"), block.positive_float("high_freq_factor")
    if high <= low:
        raise block.wrong("high_freq_factor", f"must be above low_freq_factor, {low}")
    return {
        "factor": block.positive_float("factor"),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": _original(fields, block, absent=None),
    }


def _dynamic(fields: Fields, block: Fields, head_dim: int) -> dict[str, Any]:
    factor = block.positive_float("factor")
    if factor < 1:
        raise block.wrong("factor", "must be at least 1")
    if head_dim == 2:
        raise fields.wrong("head_dim", "must be above 2 for dynamic scaling")
    return {
        "factor": factor,
        "original_max_position_embeddings": fields.positive_int("max_position_embeddings"),
    }


def _yarn(fields: Fields, block: Fields, theta: float) -> dict[str, Any]:
    if theta == 1:
        raise ConfigError(f"{CONFIG_FILE}: rope_theta is 1, must be another for yarn", _TWO_ANSWERS)
    beta_fast = block.positive_float("beta_fast", absent=32.0)
    beta_slow = block.positive_float("beta_slow", absent=1.0)
    if beta_fast < beta_slow:
        raise block.wrong("beta_fast", f"must not be below beta_slow, {beta_slow}")
    return {
        **_stretched(fields, block),
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "mscale": block.optional_float("mscale"),
        "mscale_all_dim": block.optional_float("mscale_all_dim"),
        "truncate": block.get("truncate") is None or block.flag("truncate"),
    }


def _longrope(fields: Fields, block: Fields, head_dim: int) -> dict[str, Any]:
    stretched = _stretched(fields, block)
    if stretched["original_max_position_embeddings"] == 1:
        raise block.wrong("original_max_position_embeddings", "must be above 1")
    for key in ("short_factor", "long_factor"):
        values = block.get(key)
        if not isinstance(values, list) or len(values) != head_dim // 2:
            raise block.wrong(key, f"must be a list of head_dim / 2 = {head_dim // 2} numbers")
        numbers = Fields({str(index): value for index, value in enumerate(values)}, f"{block.prefix}{key}.")
        stretched[key] = tuple(numbers.positive_float(index) for index in numbers.values)
    return stretched


def _stretched(fields: Fields, block: Fields) -> dict[str, Any]:
    """What yarn and longrope share; absent values mean what they mean to transformers 5."""
    longest = fields.positive_int("max_position_embeddings")
    original = _original(fields, block, absent=longest)
    return {
        "factor": block.positive_float("factor", absent=longest / original),
        "original_max_position_embeddings": original,
        "attention_factor": block.optional_float("attention_factor"),
    }


def _original(fields: Fields, block: Fields, absent: int | None) -> int:
    """Read ``original_max_position_embeddings`` from the block, or from the top as Phi 3 has it."""
    key = "original_max_position_embeddings"
    if fields.get(key) is not None:
        absent = fields.positive_int(key)
    original = block.positive_int(key, absent)
    # transformers 5 lets a top-level value overrule the block's, so two values would be two models.
    if fields.positive_int(key, original) != original:
        raise _contradiction(key, fields.get(key), block.prefix + key, original)
    return original


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
    if block.get(key) not in ROPE_TYPES:
        raise block.unsupported(key, _SUPPORTED)
    return str(block.get(key))


def _contradiction(where: str, value: object, elsewhere: str, other: object) -> ConfigError:
    return ConfigError(
        f"{CONFIG_FILE}: {where} is {shown(value)}, but {elsewhere} is {shown(other)}, must be the same",
        _TWO_ANSWERS,
    )
