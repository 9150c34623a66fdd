"""Every error a person can cause, as one tree.

    LlamaExportError
    ├── CheckpointError      a file of the checkpoint cannot be read or does not fit its config
    │   └── ConfigError      config.json says something that we do not, or cannot, honour
    ├── OptionError          what was asked for contradicts itself, the checkpoint or the machine
    ├── BundleError          the output folder cannot be written or is not what it should be
    ├── EngineError          a graph that TensorRT would refuse or compute wrongly, or a build that failed
    ├── MissingExtraError    an optional package is not installed
    └── ParityError          the export was made, but does not compute what the reference does (exit code 1)

A message says what, got and allowed, without a full stop; the hint proposes the remedy.
"""

from __future__ import annotations


class LlamaExportError(Exception):
    """Base of all errors that end a command with one sentence instead of a traceback.

    Attributes:
        message: What is wrong, what was found and what is allowed.
        hint: The remedy, or None where there is none to propose.
        exit_code: What the command exits with; 2 for bad input.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CheckpointError(LlamaExportError):
    """A checkpoint's file is missing, truncated, malformed, or does not fit its config."""


class ConfigError(CheckpointError):
    """config.json is missing a field, or holds a value that cannot be honoured exactly."""


class OptionError(LlamaExportError):
    """An option or recipe contradicts itself, the checkpoint or the machine."""


class BundleError(LlamaExportError):
    """The output folder cannot be written, or what stands there is not a bundle."""


class EngineError(LlamaExportError):
    """A graph that TensorRT would refuse or silently compute wrongly, or an engine that cannot be built."""


class MissingExtraError(LlamaExportError):
    """A package of an optional extra is not installed."""


class ParityError(LlamaExportError):
    """The candidate does not compute what the reference computes."""

    exit_code = 1
