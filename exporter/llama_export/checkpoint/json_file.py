"""JSON objects from files that other people wrote: read strictly, refused in one sentence."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_export.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000  # what the safetensors reference implementation allows for a header
DOWNLOAD_AGAIN = "the download is incomplete or damaged; download the checkpoint again"
_LONGEST_SHOWN = 80


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn the operating system's errors into sentences about ``name``.

    Raises:
        CheckpointError: The file is missing, or may not or cannot be read.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{name}: is missing", DOWNLOAD_AGAIN) from error
    except PermissionError as error:
        raise CheckpointError(
            f"{name}: cannot be read: permission denied",
            "give yourself read access to the checkpoint's files",
        ) from error
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise CheckpointError(f"{name}: cannot be read: {reason}", DOWNLOAD_AGAIN) from error


def resolve_file(path: Path, name: str) -> Path:
    """Follow symlinks to the real file.

    Args:
        path: A file, or a link to one, as in a Hub snapshot.
        name: What messages call it.

    Returns:
        The absolute path of a regular file.

    Raises:
        CheckpointError: It is missing, a folder, a device or a pipe.
    """
    with reading(name):
        # stat goes first: it refuses a loop of links, on which resolve() has its own ideas.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            got = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
            raise CheckpointError(f"{name}: is {got}, must be a regular file", DOWNLOAD_AGAIN)
        return path.resolve()


def read_json_object(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON file whose outermost value is an object.

    Args:
        path: The file.
        name: What messages call it.

    Returns:
        The object, its keys in the order of the file.

    Raises:
        CheckpointError: It cannot be read, is absurdly large, or ``parse_json_object`` refuses it.
    """
    file = resolve_file(path, name)
    with reading(name), file.open("rb") as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{name}: is over {MAX_JSON_BYTES} bytes, no such file is that long", DOWNLOAD_AGAIN
        )
    return parse_json_object(data, name)


def parse_json_object(data: bytes, name: str) -> dict[str, Any]:
    """Parse UTF-8 JSON whose outermost value is an object.

    Stricter than ``json.loads``: a key may occur once, and a number must be finite.

    Args:
        data: The text.
        name: What messages call its file.

    Raises:
        CheckpointError: It is empty, not UTF-8, not JSON, or not an object.
    """

    def unique_finite(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in pairs:
            if key in entries:
                raise CheckpointError(
                    f"{name}: {shown_name(key)} occurs twice, a key may occur once", DOWNLOAD_AGAIN
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise CheckpointError(
                    f"{name}: {shown_name(key)} is {value}, must be a finite number", "correct the value"
                )
            entries[key] = value
        return entries

    if not data.strip():
        raise CheckpointError(f"{name}: is empty, must be a JSON object", DOWNLOAD_AGAIN)
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=unique_finite)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{name}: is not UTF-8 at byte {error.start}", DOWNLOAD_AGAIN) from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise CheckpointError(f"{name}: is not JSON: {error.msg} at {where}", DOWNLOAD_AGAIN) from error
    except RecursionError as error:
        raise CheckpointError(f"{name}: is nested too deeply to be read", DOWNLOAD_AGAIN) from error
    except ValueError as error:  # Python's limit on the digits of an integer
        raise CheckpointError(f"{name}: holds a number with thousands of digits", DOWNLOAD_AGAIN) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{name}: is {shown(parsed)}, must be a JSON object", DOWNLOAD_AGAIN)
    return parsed


def shown(value: object) -> str:
    """Write a JSON value as part of a sentence: on one line, in ASCII, never long."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deeply to be shown"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def shown_name(name: str) -> str:
    """Write a key, tensor or file name as part of a sentence: bare, unless that could garble it."""
    return name if name and name.isprintable() and len(name) <= _LONGEST_SHOWN else shown(name)
