"""A chat on disk: its messages, its tokens, and their keys and values, tied to the bundle that made them.

A safetensors file: ``tokens`` [N] int64, of which the first P are in the cache, then ``0`` to ``2L - 1``, key
and value of each layer, [K, P, D]. Its metadata says the format's version, the bundle and the messages.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_runtime import strict_json
from llama_runtime.errors import CacheError
from llama_runtime.manifest import Manifest
from llama_runtime.prefix_cache import PrefixCache
from llama_runtime.session import Session

FORMAT, VERSION = "llama-export-chat", "1"
NO_CHAT = "name a file that a chat's `save` wrote"


@dataclass(frozen=True)
class ChatState:
    """What a chat is besides its cache.

    Attributes:
        messages: The history.
        dropped_messages: How many of them are left out of the prompt.
        known_tokens: The last prompt and its answer, as the model read and generated them.
    """

    messages: list[dict[str, Any]]
    dropped_messages: int
    known_tokens: list[int]


@dataclass(frozen=True)
class _Metadata:
    messages: tuple[dict[str, Any], ...]
    dropped_messages: int


def save(path: Path, manifest: Manifest, state: ChatState, cache: PrefixCache) -> None:
    """Write a chat, as a whole or not at all.

    Raises:
        CacheError: The file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    # The cache may hold less than is known: the last token of an answer is not read.
    known = state.known_tokens if cache.tokens == state.known_tokens[: len(cache.tokens)] else cache.tokens
    tensors = {str(i): array for i, array in enumerate(cache.read())}
    tensors["tokens"] = np.array(known, np.int64)
    chat = {"messages": state.messages, "dropped_messages": state.dropped_messages}
    metadata = {"format": FORMAT, "version": VERSION, "bundle": bundle_digest(manifest)}
    content = to_bytes(tensors, metadata | {"chat": json.dumps(chat, ensure_ascii=False)})
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CacheError(f"{path}: cannot be written ({error.strerror})") from None


def load(path: Path, session: Session) -> tuple[ChatState, PrefixCache]:
    """Read a chat that ``save`` wrote with the same bundle.

    Raises:
        CacheError: It cannot be read, is corrupt, or belongs to another bundle.
    """
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise CacheError(f"{path}: not a saved chat", NO_CHAT)
    if metadata.get("version") != VERSION:
        version = metadata.get("version")
        raise CacheError(f"{path}: version {version} of a saved chat, this runtime reads {VERSION}")
    if metadata.get("bundle") != bundle_digest(session.manifest):
        raise CacheError(
            f"{path}: the chat was saved with another bundle", "open the bundle that it was saved with"
        )
    try:
        chat = strict_json.decode(_Metadata, strict_json.parse(metadata.get("chat", "")))
    except strict_json.StrictJsonError as error:
        raise CacheError(f"{path}: corrupt: {error}", NO_CHAT) from None
    tokens = tensors.pop("tokens", np.empty(0))
    arrays = [
        tensors.pop(str(i), np.empty(0)) for i in range(2 * session.manifest.kv_cache.num_hidden_layers)
    ]
    _check(path, session.manifest, tokens, arrays)
    cache = PrefixCache(session)
    known = [int(token) for token in tokens]
    if known:
        cache.write(known[: arrays[0].shape[1]], arrays)
    return ChatState(list(chat.messages), chat.dropped_messages, known), cache


def bundle_digest(manifest: Manifest) -> str:
    """SHA-256 over the bundle's files, as its manifest lists them: graph, weights and tokenizer."""
    listed = sorted((entry.path, entry.sha256) for entry in manifest.files)
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror or 'no such file'})", NO_CHAT) from None
    except SafetensorError as error:
        raise CacheError(f"{path}: not a saved chat, or cut short ({error})", NO_CHAT) from None


def _check(path: Path, manifest: Manifest, tokens: np.ndarray, arrays: list[np.ndarray]) -> None:
    shape, limits = manifest.kv_cache, manifest.limits
    P = arrays[0].shape[1] if arrays[0].ndim == 3 else -1
    dims = (shape.num_key_value_heads, P, shape.head_dim)
    if any(array.shape != dims or array.dtype != shape.dtype for array in arrays):
        raise CacheError(f"{path}: corrupt: its keys and values do not have the model's shape", NO_CHAT)
    most = min(len(tokens), limits.max_position_embeddings) if tokens.ndim == 1 else -1
    fits = tokens.dtype == np.int64 and most >= P
    if not fits or (len(tokens) and not 0 <= tokens.min() <= tokens.max() < limits.vocab_size):
        raise CacheError(
            f"{path}: corrupt: its tokens are not the model's, or fewer than it has keys", NO_CHAT
        )
