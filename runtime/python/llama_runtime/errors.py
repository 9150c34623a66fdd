"""Every error a person can cause, as one tree.

    LlamaRuntimeError
    ├── ManifestError        manifest.json or a file it lists is missing, malformed, newer or changed
    ├── TokenizerError       the bundle's tokenizer cannot be read, or there is none where one is needed
    ├── PromptError          the prompt is empty, too long, not text, or holds an unknown token
    ├── ChatError            no chat template, or it refuses the messages; a chat that is too long
    ├── CacheError           a saved cache is corrupt, or belongs to another bundle
    ├── OptionError          a sampling or generation option is out of range or contradicts another
    ├── SessionError         ONNX Runtime cannot open or run the bundle's graph
    ├── EngineError          a TensorRT engine is missing, damaged, or made for another version or GPU
    ├── MissingExtraError    an optional package is not installed
    └── SelftestError        the bundle's known answers are not what it computes here (exit code 1)

A message says what, got and allowed, without a full stop; the hint proposes the remedy.
"""

from __future__ import annotations


class LlamaRuntimeError(Exception):
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


class ManifestError(LlamaRuntimeError):
    """manifest.json, or a file it lists, is missing, malformed, newer or not what was published."""


class TokenizerError(LlamaRuntimeError):
    """The bundle's tokenizer cannot be read, or there is none where text is asked for."""


class PromptError(LlamaRuntimeError):
    """The prompt is empty, too long for the model, not text, or holds an unknown token."""


class ChatError(LlamaRuntimeError):
    """There is no chat template, it refuses the messages, or a chat no longer fits the model."""


class CacheError(LlamaRuntimeError):
    """A saved cache cannot be read, is corrupt, or belongs to another bundle."""


class OptionError(LlamaRuntimeError):
    """A sampling or generation option is out of range or contradicts another."""


class SessionError(LlamaRuntimeError):
    """ONNX Runtime cannot open or run the bundle's graph."""


class EngineError(LlamaRuntimeError):
    """A TensorRT engine is missing, damaged, made for another version or GPU, or cannot run."""


class MissingExtraError(LlamaRuntimeError):
    """A package of an optional extra is not installed."""


class SelftestError(LlamaRuntimeError):
    """What the bundle computes here differs from its known answers."""

    exit_code = 1
