"""manifest.json, version 1: the one file a runtime reads to know everything about a bundle.

The exporter writes it through these dataclasses, the runtimes read it; FORMAT.md says in
words, and manifest.schema.json as JSON Schema, what is said here in types.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llama_runtime import strict_json
from llama_runtime.errors import ManifestError
from llama_runtime.integrity import check_hashes, check_structure
from llama_runtime.interface import Cache, Graph, SoftPrompt, TensorSpec, check_relative_path
from llama_runtime.known import KnownAnswer, KnownOutput, OutputProbe, Probe, check_at_least

__all__ = [
    "Cache",
    "ChatRoles",
    "ChatTemplates",
    "Classification",
    "FileEntry",
    "Graph",
    "KnownAnswer",
    "KnownOutput",
    "Limits",
    "Manifest",
    "OutputProbe",
    "Probe",
    "Rope",
    "SoftPrompt",
    "TensorSpec",
    "TokenizerFile",
    "Tokens",
    "check_hashes",
    "check_relative_path",
    "check_structure",
    "read_manifest",
]

FORMAT = "llama-export"
VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
GENERATES = "text-generation"
EMBEDS = "inputs_embeds"
CLASSIFIES = ("text-classification", "token-classification")
EXPORT_AGAIN = "export the checkpoint again, or copy the whole bundle again"


@dataclass(frozen=True)
class Classification:
    """The names of the scores, and how they are read: which function turns logits into scores.

    ``problem_type`` null means by number: one label is a sigmoid, several a softmax.
    """

    labels: tuple[str, ...]
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None

    def __post_init__(self) -> None:
        check_at_least(1, labels=len(self.labels))


@dataclass(frozen=True)
class Limits:
    """How many positions and token ids the model knows."""

    max_position_embeddings: int
    vocab_size: int

    def __post_init__(self) -> None:
        check_at_least(1, max_position_embeddings=self.max_position_embeddings, vocab_size=self.vocab_size)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding whose angles depend on how long the text is, beyond the original context.

    ``cached_keys`` says what becomes of keys in the cache when the text grows: they stay as they were.
    """

    rope_type: Literal["dynamic", "longrope"]
    original_max_position_embeddings: int
    cached_keys: Literal["kept"] = "kept"

    def __post_init__(self) -> None:
        check_at_least(1, original_max_position_embeddings=self.original_max_position_embeddings)


@dataclass(frozen=True)
class Tokens:
    """Special token ids; generation ends at any of ``eos_token_ids``."""

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None


@dataclass(frozen=True)
class TokenizerFile:
    """Which file holds the vocabulary, and whether a prompt gets BOS in front and EOS behind."""

    kind: Literal["sentencepiece", "tokenizers"]
    path: str
    add_bos: bool
    add_eos: bool

    def __post_init__(self) -> None:
        check_relative_path("path", self.path)


@dataclass(frozen=True)
class ChatRoles:
    """The default template without Jinja: what it puts in front of each message, and behind the last.

    ``between`` is by the role in front ("" for none), then by the message's own; a part is a text or a token.
    """

    between: dict[str, dict[str, tuple[int | str, ...]]]
    trim: dict[str, bool]
    answer: tuple[int | str, ...]


@dataclass(frozen=True)
class ChatTemplates:
    """The checkpoint's chat templates, Jinja source by name, and the tokens that they know as variables.

    ``roles`` is null where the default template cannot be reduced to them, and may be left out.
    """

    sources: dict[str, str]
    special_tokens: dict[str, str]
    roles: ChatRoles | None = field(default=None, metadata={"optional": True})

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty, needs at least one template; none at all is null")


@dataclass(frozen=True)
class FileEntry:
    """A file as it was published: relative path, size, and SHA-256 in lowercase hexadecimal."""

    path: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_relative_path("path", self.path)
        check_at_least(0, size_bytes=self.size_bytes)
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 is {self.sha256!r}, needs 64 lowercase hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a runtime needs to know about a bundle; None says that there is none, or not measured."""

    format: Literal["llama-export"] = "llama-export"
    version: Literal[1] = 1
    created_with: dict[str, str]
    task: str
    precision: str
    step_weight_bytes: int | None = None
    weights: Literal["link", "copy", "beside"]
    attention: Literal["eager", "sdpa", "flash"]
    model: Graph
    inputs: tuple[TensorSpec, ...]
    optional_inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    embed_tokens: str | None = None
    cache: Cache | None
    soft_prompt: SoftPrompt | None = None
    classification: Classification | None
    limits: Limits
    rope: Rope | None
    tokens: Tokens
    tokenizer: TokenizerFile | None
    chat_template: ChatTemplates | None
    files: tuple[FileEntry, ...]
    source: tuple[FileEntry, ...]
    known_answers: tuple[KnownAnswer, ...]
    known_outputs: tuple[KnownOutput, ...]
    parity: dict[str, Any] | None

    def __post_init__(self) -> None:
        self._check_files()
        self._check_task()
        self._check_token_ids()

    @property
    def kv_cache(self) -> Cache:
        """The cache of a bundle that generates.

        Raises:
            ManifestError: The task needs none.
        """
        if self.cache is None:
            raise ManifestError(f"the bundle's task is {self.task}, which reads whole texts and has no cache")
        return self.cache

    def to_json(self) -> str:
        """Write the manifest as JSON: fields in the order declared here, two spaces, one final newline."""
        document = dataclasses.asdict(self)
        document["created_with"] = dict(sorted(self.created_with.items()))
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def _check_files(self) -> None:
        paths: set[str] = set()
        for entry in self.files:
            if entry.path == MANIFEST_NAME or entry.path in paths:
                raise ValueError(
                    f"files lists {entry.path!r}, needs each file once and {MANIFEST_NAME} never"
                )
            paths.add(entry.path)
        if self.embed_tokens is not None:
            check_relative_path("embed_tokens", self.embed_tokens)
        needed = [self.model.path] + ([self.tokenizer.path] if self.tokenizer else [])
        needed += [self.embed_tokens] if self.embed_tokens is not None else []
        needed += [self.soft_prompt.path] if self.soft_prompt else []
        for path in needed:
            if path not in paths:
                raise ValueError(f"files does not list {path!r}, which another field names")

    def _check_task(self) -> None:
        if (self.embed_tokens is None) == any(spec.name == EMBEDS for spec in self.inputs):
            raise ValueError(f"embed_tokens is {self.embed_tokens!r}, an input {EMBEDS} alone needs one")
        if (self.cache is None) == (self.task == GENERATES):
            has = "none" if self.cache is None else "one"
            raise ValueError(f"cache: there is {has}, {GENERATES} alone has one and task is {self.task!r}")
        if self.soft_prompt is not None and self.cache is None:
            raise ValueError(f"soft_prompt is given, it stands in a cache and task is {self.task!r}")
        if (self.classification is None) == (self.task in CLASSIFIES):
            has = "null" if self.classification is None else "given"
            raise ValueError(f"classification is {has}, the tasks with labels are {' and '.join(CLASSIFIES)}")
        names = {spec.name for spec in self.outputs}
        for known in self.known_outputs:
            for probe in known.probes:
                if probe.output not in names:
                    raise ValueError(f"known_outputs name output {probe.output!r}, outputs has no such one")

    def _check_token_ids(self) -> None:
        single = [self.tokens.bos_token_id, self.tokens.pad_token_id]
        ids = [*self.tokens.eos_token_ids, *(token for token in single if token is not None)]
        for answer in self.known_answers:
            ids += [*answer.prompt_tokens, *answer.tokens]
            ids += [token for probe in answer.probes for token in probe.token_ids]
        for known in self.known_outputs:
            ids += known.token_ids
        for token in ids:
            if not 0 <= token < self.limits.vocab_size:
                raise ValueError(
                    f"tokens, known_outputs or known_answers name id {token}, "
                    f"limits.vocab_size is {self.limits.vocab_size}"
                )
        if self.tokenizer and self.tokenizer.add_bos and self.tokens.bos_token_id is None:
            raise ValueError("tokens.bos_token_id is null, tokenizer.add_bos needs one")


def read_manifest(folder: Path) -> Manifest:
    """Read and check a bundle's manifest; touches no other file.

    Args:
        folder: The bundle.

    Raises:
        ManifestError: No bundle there, a newer version, or a missing or wrong field, named.
    """
    path = folder / MANIFEST_NAME
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{path}: {size_bytes} bytes, at most {MAX_MANIFEST_BYTES} are allowed")
        document = strict_json.parse(path.read_bytes().decode("utf-8"))
    except OSError as error:
        hint = "name the folder that `llama-export onnx` wrote"
        raise ManifestError(
            f"{folder}: not a bundle, {MANIFEST_NAME} cannot be read ({error.strerror})", hint
        ) from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not UTF-8", EXPORT_AGAIN) from None
    except strict_json.StrictJsonError as error:
        raise ManifestError(f"{path}: {error}", EXPORT_AGAIN) from None
    _check_version(path, document)
    try:
        return strict_json.decode(Manifest, document)
    except strict_json.StrictJsonError as error:
        raise ManifestError(f"{path}: {error}", EXPORT_AGAIN) from None


def _check_version(path: Path, document: Any) -> None:
    # Before any other field: a newer version may have changed all of them.
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ManifestError(f'{path}: not a bundle of ours, needs "format": "{FORMAT}"')
    version = document.get("version")
    if type(version) is int and version > VERSION:
        hint = "upgrade llama-export, or export the checkpoint again with this version"
        raise ManifestError(
            f"{path}: version {version} is newer than this runtime, which reads {VERSION}", hint
        )
