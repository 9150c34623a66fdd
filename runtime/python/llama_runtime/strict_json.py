"""JSON into frozen dataclasses, refusing whatever the annotations do not allow.

The dataclass is the schema: a field's annotation says its type, `__post_init__`
raises ValueError ("field is X, needs Y") for what a type cannot say. Unknown keys
are ignored, so that a later minor writer may add some; missing ones are refused,
unless the field's metadata has "optional".
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")

SCALARS: dict[Any, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
SHOWN_CHARACTERS = 60


class StrictJsonError(ValueError):
    """The text is not JSON, or a field of it is missing or of the wrong type."""


def parse(text: str) -> Any:
    """Parse JSON, refusing what different readers would read differently.

    Args:
        text: The whole document.

    Raises:
        StrictJsonError: Not JSON, nested too deeply, a key given twice, or NaN/Infinity.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except StrictJsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise StrictJsonError(f"not JSON: {error}") from None


def decode(cls: type[T], value: Any, where: str = "") -> T:
    """Build a dataclass from a parsed JSON object.

    Args:
        cls: A dataclass whose annotations use str, int, float, bool, None, Any, Literal,
            ``tuple[X, ...]``, ``dict[str, X]``, unions of these, and other dataclasses.
        value: What the JSON holds at this place.
        where: The path of this place, for messages: ``files[3]``.

    Raises:
        StrictJsonError: A field is missing, wrongly typed, or refused by ``__post_init__``.
    """
    if not isinstance(value, dict):
        raise StrictJsonError(f"{where or 'document'} is {_show(value)}, needs an object")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        place = f"{where}.{field.name}" if where else field.name
        if field.name not in value:
            if field.metadata.get("optional"):
                continue
            raise StrictJsonError(f"{place} is missing")
        arguments[field.name] = _decode_value(hints[field.name], value[field.name], place)
    try:
        return cls(**arguments)
    except StrictJsonError:
        raise
    except ValueError as error:
        raise StrictJsonError(f"{where}.{error}" if where else str(error)) from None


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is typing.Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            choices = ", ".join(json.dumps(choice) for choice in arguments)
            raise StrictJsonError(f"{where} is {_show(value)}, needs one of {choices}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise StrictJsonError(f"{where} is {_show(value)}, needs a list")
        return tuple(_decode_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise StrictJsonError(f"{where} is {_show(value)}, needs an object")
        return {key: _decode_value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), value, where)
    return _decode_scalar(hint, value, where)


def _decode_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    if len(rest) == 1:
        return _decode_value(rest[0], value, where)
    for choice in rest:
        if type(value) is choice:
            return value
    raise StrictJsonError(f"{where} is {_show(value)}, needs {' or '.join(SCALARS[c] for c in rest)}")


def _decode_scalar(hint: Any, value: Any, where: str) -> Any:
    # bool is an int to Python and 1 is a float to a person: exact types, with that one widening.
    if hint is float and type(value) is int:
        value = _widen(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise StrictJsonError(f"{where} is {_show(value)}, needs {SCALARS[hint]}")
    return value


def _widen(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise StrictJsonError(f"key {key!r} is given twice")
        document[key] = value
    return document


def _no_constant(name: str) -> Any:
    raise StrictJsonError(f"{name} is not JSON")


def _show(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[:SHOWN_CHARACTERS] + "..."
