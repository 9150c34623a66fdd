"""A session over a TensorRT engine: which profile and bucket a step takes, and what it is fed.

The same interface as a session of ONNX Runtime, with the same generator on top. It knows an engine by
``engine.Engine`` alone. B rows, T new tokens, P past tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from llama_runtime.cache import KVCache
from llama_runtime.cuda import open_cuda
from llama_runtime.engine import Engine, Memory
from llama_runtime.engine_file import EngineFile, check_runs_here, read_engine_file, read_graph, read_plan
from llama_runtime.errors import EngineError, OptionError, PromptError
from llama_runtime.extras import Outputs
from llama_runtime.leased_cache import Lease, LeasedCache
from llama_runtime.manifest import Limits, Manifest
from llama_runtime.session import Session
from llama_runtime.soft_prompt import read_soft_prompt
from llama_runtime.step import StepShape
from llama_runtime.tensorrt_engine import TensorRTEngine
from llama_runtime.tensorrt_library import find_library

# By how much of the largest logit an engine may differ from the float32 reference on a bundle's own weights:
# what it computes in rounds in every layer, and few bits round the weights themselves. From the demo and from
# random weights, which exaggerate (benchmarks/LOG.md); bf16, which no CPU computes in, from its bits.
ROUNDING = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2, "int8": 0.2, "fp8": 0.5, "int4": 1.0}


class EngineSession(Session):
    """A loaded engine: NumPy in, NumPy out; used by one thread at a time.

    Memory that no cache holds any more serves the next one of as many rows, so that what an engine has
    recorded for it (CUDA graphs) stays good.

    Attributes:
        engine: What runs.
        file: Its sidecar.
    """

    def __init__(
        self, engine: Engine, file: EngineFile, manifest: Manifest, learned: Sequence[np.ndarray] = ()
    ) -> None:
        super().__init__(None, _as_the_engine_has_it(manifest, file), learned=learned)
        self.engine, self.file = engine, file
        self.rounding = ROUNDING[file.precision]
        self._idle: dict[int, list[Memory]] = {}

    def new_cache(self, *, capacity: int, rows: int = 1) -> LeasedCache:
        """As ``Session.new_cache``, of no more rows and positions than the engine was built for.

        Raises:
            OptionError: ``capacity`` or ``rows`` below 1, or too many rows.
            PromptError: Too many positions.
            EngineError: The GPU's memory is full, or the task has no cache.
        """
        if capacity < 1 or rows < 1:
            raise OptionError(f"a cache of {rows} rows and {capacity} positions, needs at least 1 of each")
        if not self.file.buckets:
            raise EngineError(f"the engine's task is {self.file.task}, which has no cache")
        offset = self.soft_prompt[0].shape[1] if self.soft_prompt else 0
        most = self.file.max_seq - offset
        if capacity > most:
            raise PromptError(
                f"a cache of {capacity} positions, the engine has {most}",
                "build it with a larger --max-seq, or ask for fewer tokens",
            )
        cache = LeasedCache(
            rows, capacity, True, [], offset=offset, session=self, lease=self.lease(rows, capacity)
        )
        for row in range(rows if self.soft_prompt else 0):
            cache.lease.memory.write_row(row, self.soft_prompt)
        return cache

    def lease(self, rows: int, capacity: int) -> Lease:
        """Give memory of so many rows, each with all slots whatever the capacity, to a cache.

        Raises:
            OptionError: More rows than the engine was built for.
            EngineError: The GPU's memory is full.
        """
        if rows > self.file.max_batch:
            raise OptionError(
                f"{rows} rows together, the engine takes {self.file.max_batch}",
                "build it with a larger --max-batch, or ask for fewer",
            )
        idle = self._idle.setdefault(rows, [])
        try:
            return Lease(idle.pop() if idle else self.engine.allocate(rows), idle)
        except MemoryError as error:
            raise EngineError(f"no room for {rows} rows of cache: {error}", "use fewer rows") from None

    def run(
        self, feeds: dict[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run on whole texts; more rows than the engine takes go one group after the other.

        Args:
            feeds: ``input_ids`` and ``attention_mask``, int64 [B, T]; of a language model other inputs are
                for its own graph, and whole texts have nothing behind them.
            outputs: Which are wanted; None is all.

        Returns:
            Each output by name; of a language model zeros where there is padding.

        Raises:
            PromptError: Longer texts than the engine takes.
        """
        if self.file.buckets:
            return self._run_texts(feeds["input_ids"], feeds["attention_mask"], outputs)
        B, T = feeds["input_ids"].shape
        if self.file.max_seq < T:
            raise PromptError(
                f"a text of {T} tokens, the engine takes {self.file.max_seq}",
                "build it with a larger --max-seq",
            )
        names = [spec.name for spec in self.manifest.outputs] if outputs is None else outputs
        groups = [
            self.engine.run(
                0, {name: array[row : row + self.file.max_batch] for name, array in feeds.items()}
            )
            for row in range(0, B, self.file.max_batch)
        ]
        return {name: np.concatenate([group[name] for group in groups]) for name in names}

    def _run_texts(
        self, ids: np.ndarray, mask: np.ndarray, outputs: Sequence[str] | None
    ) -> dict[str, np.ndarray]:
        """Read [B, T] padded texts one by one, each without its padding."""
        names = [spec.name for spec in self.manifest.outputs] if outputs is None else list(outputs)
        extras, found = [name for name in names if name != "logits"], dict[str, np.ndarray]()
        for row, seen in enumerate(mask == 1):
            cache = self.new_cache(capacity=int(seen.sum()))
            every = "logits" in names
            read = self.prefill(ids[row : row + 1, seen], cache, all_logits=every, outputs=extras)
            for name in names:
                whole = found.setdefault(name, np.zeros((*ids.shape, read[name].shape[-1]), np.float32))
                whole[row, seen] = read[name][0]
        return found

    def _prefill_rows(
        self, shape: StepShape, tokens: np.ndarray, cache: KVCache, chunk_tokens: int
    ) -> Outputs:
        # An engine gives the logits of a run's last token: to have those of all, it reads one by one.
        most = 1 if shape.num_logits_to_keep == 0 else self.file.prefill_chunk
        return super()._prefill_rows(shape, tokens, cache, min(chunk_tokens, most))

    def _run(
        self, shape: StepShape, tokens: np.ndarray, cache: KVCache, lengths: np.ndarray | None = None
    ) -> Outputs:
        """One run: T tokens behind each row's own past, in the smallest bucket that holds the longest."""
        assert isinstance(cache, LeasedCache)
        B, T = tokens.shape
        past = cache.offset + (np.full(B, cache.length, np.int64) if lengths is None else lengths)
        end = int(past.max()) + T
        # The engine itself ignores a write behind the last slot without a word.
        if end > self.file.max_seq or int(past.min()) < 0:
            raise PromptError(f"{T} tokens from slot {end - T} on, the engine has {self.file.max_seq}")
        index = next(i for i, bucket in enumerate(self.file.buckets) if bucket >= end)
        feeds = {
            "input_ids": tokens,
            "position_ids": past[:, None] + np.arange(T),
            "write_indices": past,
            "kv_bucket": np.array([self.file.buckets[index]], np.int64),
        }
        if self.manifest.rope is not None:
            feeds["rope_length"] = np.array([shape.rope_length], np.int64)
        profile = index if T == 1 else len(self.file.buckets)
        first_row = cache.first_row + shape.first_row
        found = self.engine.run(profile, feeds, cache.lease.memory, first_row)
        extras = {name: found[name] for name in shape.outputs}
        return {"logits": found["logits"][:, None]} | extras  # [B, 1, V]; [B, T, hidden_size]


def open_engine_session(folder: Path, manifest: Manifest, name: str | None = None) -> EngineSession:
    """Load one of a bundle's engines on this machine's GPU.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.
        name: Which engine; None is the only one.

    Raises:
        MissingExtraError: TensorRT or cuda-python is not installed.
        EngineError: There is no such engine, it is damaged, or made for another version or GPU; no GPU.
    """
    file = read_engine_file(folder, name)
    if file.task != manifest.task:
        raise EngineError(f"{folder}: the engine's task is {file.task}, the bundle's {manifest.task}",
                          file.rebuild_command(folder))  # fmt: skip
    if file.plan is None or file.product is None:
        read_plan(folder, file)  # refuses, with the command that builds it
    library = find_library(file.product or "auto")
    cuda, capability = open_cuda()
    check_runs_here(folder, file, library.product, library.version, capability)
    graph = read_graph(folder, file) if file.stripped else None
    engine = TensorRTEngine(library, cuda, file, read_plan(folder, file), graph)
    return EngineSession(engine, file, manifest, read_soft_prompt(folder, manifest))


def _as_the_engine_has_it(manifest: Manifest, file: EngineFile) -> Manifest:
    """The bundle's manifest, with the engine's limits and cache in place of its graph's."""
    learned = manifest.soft_prompt.positions if manifest.soft_prompt else 0
    most = min(file.max_seq - learned, manifest.limits.max_position_embeddings)
    limits = Limits(most, manifest.limits.vocab_size)
    if manifest.cache is None:
        return replace(manifest, limits=limits)
    has = {spec.name for spec in file.outputs}
    outputs = tuple(spec for spec in manifest.outputs if spec.name in has)
    # What leaves the GPU: NumPy has no bfloat16.
    dtype: Literal["float16", "float32"] = "float16" if file.dtype == "float16" else "float32"
    cache = replace(manifest.cache, in_place=True, dtype=dtype)
    return replace(manifest, limits=limits, cache=cache, outputs=outputs, optional_inputs=())
