"""The fields of ``config.json``, each read with its type and range, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama_export.checkpoint.json_file import shown
from llama_export.errors import ConfigError

CONFIG_FILE = "config.json"
_MAX_INT = 2**31 - 1
_MAX_FLOAT = 1e30  # any bound will do that keeps float() from overflowing on a long integer
_DAMAGED = "the file is damaged or was edited; take the one that belongs to the checkpoint"
NOT_YET = "llama-export does not compute this yet, and leaving it out would silently change the model"


@dataclass(frozen=True)
class Fields:
    """One JSON object of ``config.json``; null counts as absent, as it does for transformers.

    Attributes:
        values: The object.
        prefix: What its keys are called in messages, ``"rope_scaling."`` or nothing.
        file: Where it is from, for messages.
    """

    values: dict[str, Any]
    prefix: str = ""
    file: str = CONFIG_FILE

    def get(self, key: str) -> Any:
        """Return the value of ``key``, None where it is null or absent."""
        return self.values.get(key)

    def wrong(self, key: str, allowed: str, hint: str = _DAMAGED) -> ConfigError:
        """Make the error that says what ``key`` is and what it must be."""
        value = self.get(key)
        got = "missing" if value is None else shown(value)
        return ConfigError(f"{self.file}: {self.prefix}{key} is {got}, {allowed}", hint)

    def unsupported(self, key: str, allowed: str, hint: str = NOT_YET) -> ConfigError:
        """Make the error for a value that is right, but that we do not honour so far."""
        return self.wrong(key, allowed, hint)

    def positive_int(self, key: str, absent: int | None = None) -> int:
        """Read an integer from 1 to 2**31 - 1.

        Args:
            key: The field.
            absent: What a missing field means; None where it may not be missing.

        Raises:
            ConfigError: The field is missing, no integer, or out of range.
        """
        value = self.get(key)
        if value is None and absent is not None:
            return absent
        # type() rather than isinstance(): JSON's true is an int to Python.
        if type(value) is not int or not 1 <= value <= _MAX_INT:
            raise self.wrong(key, f"must be a positive integer, at most {_MAX_INT}")
        return value

    def positive_float(self, key: str, absent: float | None = None) -> float:
        """Read a number above 0; an integer is a number too.

        Args:
            key: The field.
            absent: What a missing field means; None where it may not be missing.

        Raises:
            ConfigError: The field is missing, no number, or not above 0.
        """
        value = self.get(key)
        if value is None and absent is not None:
            return absent
        if type(value) not in (int, float) or not 0 < value <= _MAX_FLOAT:
            raise self.wrong(key, f"must be a positive number, at most {_MAX_FLOAT}")
        return float(value)

    def optional_float(self, key: str) -> float | None:
        """Read a number above 0; a missing one is None.

        Raises:
            ConfigError: The field is no number, or not above 0.
        """
        return None if self.get(key) is None else self.positive_float(key)

    def flag(self, key: str) -> bool:
        """Read a truth value; a missing one is false.

        Raises:
            ConfigError: The field is neither true nor false.
        """
        value = self.get(key)
        if value is not None and type(value) is not bool:
            raise self.wrong(key, "must be true or false")
        return bool(value)
