"""What is exported and compared: awkward shapes, three attention paths, every way the weights can go."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama_export.pipeline import Exported
from llama_runtime.session import Session

# name, size, SHA-256, mode and time of last change of every file, links followed
Snapshot = list[tuple[str, int, str, int, int]]


@dataclass(frozen=True)
class Case:
    """One export: what is in the checkpoint and what is asked for."""

    config: str
    stored: str = "float32"
    attention: str = "flash"
    weights: str = "link"
    precision: str | None = None
    shards: int = 1
    from_hub: bool = False
    block_size: int | None = None
    asymmetric: bool = False
    keep: str | None = None

    def __str__(self) -> str:
        kind = f"{self.shards}shards" * (self.shards > 1) + "hub" * self.from_hub
        layout = f"{self.block_size or ''}" + "asymmetric" * self.asymmetric + "mixed" * bool(self.keep)
        words = (self.config, self.stored, kind, self.attention, self.weights, self.precision or "", layout)
        return "-".join(word for word in words if word)

    @property
    def rounded_to(self) -> str:
        """The dtype that the bundle's weights have been through."""
        return self.precision or self.stored


@dataclass(frozen=True)
class Export:
    """An export, and the oracle for it: transformers' model of the same checkpoint, in float32."""

    case: Case
    checkpoint: Path
    result: Exported
    session: Session
    oracle: Any
    rounded_oracle: Any
    before: Snapshot
    after: Snapshot


PATHS = ("eager", "sdpa", "flash")
CASES = [
    # Every path on every shape, as the default export does it.
    *(Case(config, attention=path) for config in ("gqa", "mha_tied", "mqa_llama3") for path in PATHS),
    # Every path with every way of storing, on one shape.
    *(Case("gqa", "bfloat16", path) for path in PATHS),
    *(Case("gqa", "float16", path) for path in PATHS),
    *(Case("gqa", "bfloat16", path, "copy", "float32") for path in PATHS),
    *(Case("gqa", "float32", path, "copy", "float16") for path in PATHS),
    *(Case("gqa", "float32", path, "copy", "bfloat16") for path in PATHS),
    # What is left: a tied embedding stored narrow, and casts between the two narrow dtypes.
    Case("mha_tied", "bfloat16"),
    Case("mha_tied", "float32", "sdpa", "copy", "float16"),
    Case("mqa_llama3", "float16", "flash", "copy", "bfloat16"),
    Case("mqa_llama3", "bfloat16", "flash", "copy", "float16"),
    # Checkpoints in several files, and as the Hub's cache links them.
    Case("gqa", "float32", shards=3),
    Case("gqa", "float32", "flash", "copy", shards=3),
    Case("mqa_llama3", "bfloat16", "sdpa", shards=2, from_hub=True),
    Case("mha_tied", "float32", from_hub=True),
]

# Widths of 42, 44, 48, 56: no block divides them. A tied table, biases, rotation outside of attention.
QUANTIZED = [
    *(Case(config, "bfloat16", path, "copy", bits) for config in ("gqa", "mha_tied") for path in PATHS
      for bits in ("int8", "int4")),
    *(Case("mqa_llama3", "float32", "flash", "copy", "int4", block_size=size, asymmetric=asymmetric)
      for size in (32, 64, 128) for asymmetric in (False, True)),
    Case("yarn", "float32", "flash", "copy", "int4", asymmetric=True),
    Case("yarn", "float16", "sdpa", "copy", "int8"),
    Case("longrope", "float32", "flash", "copy", "int8"),
    Case("dynamic", "float32", "flash", "copy", "int8", keep="embed_tokens=float32,layers.0.*=float32"),
    Case("gqa", "float32", "flash", "copy", "int4",
         keep="lm_head=float32,layers.*.v_proj=int8,embed_tokens=bfloat16"),
    Case("gqa", "float32", "flash", "copy", "int4", keep="layers.1.*=float16"),
]  # fmt: skip


def snapshot(folder: Path) -> Snapshot:
    seen = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat, data = path.stat(), path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            seen.append((str(path), len(data), digest, stat.st_mode, stat.st_mtime_ns))
    return seen


def logits_of(oracle: Any, ids: np.ndarray) -> np.ndarray:
    """[B, T] ids -> [B, T, V] logits, without cache or padding."""
    import torch

    with torch.no_grad():
        return oracle(torch.from_numpy(ids)).logits.numpy()


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference, as a fraction of the largest reference logit; anything not finite is infinite."""
    assert got.shape == want.shape
    largest = float(np.abs(got - want).max() / np.abs(want).max())
    return largest if np.isfinite(largest) else float("inf")
