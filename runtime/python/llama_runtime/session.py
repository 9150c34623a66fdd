"""An opened bundle that maps token ids to logits, and nothing else.

The only file that imports ONNX Runtime, and only when a session is opened. B rows, T new
tokens, P past tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from llama_runtime.cache import KVCache, empty_cache
from llama_runtime.cores import available_cores
from llama_runtime.errors import MissingExtraError, OptionError, PromptError, SessionError
from llama_runtime.extras import Outputs, check_outputs, join_chunks
from llama_runtime.feeding import check_lengths, check_tokens
from llama_runtime.kernels import Kernels
from llama_runtime.loading import (
    DATA_FOLDER,
    Device,
    find_provider,
    load_bundle,
    load_embedding,
    load_graph,
    recorded,
    running,
    session_options,
)
from llama_runtime.manifest import EMBEDS, Manifest
from llama_runtime.soft_prompt import read_soft_prompt
from llama_runtime.step import Step, StepShape

__all__ = ["CHUNK_TOKENS", "Device", "Session", "open_graph", "open_session"]

CHUNK_TOKENS = 512


class Session:
    """A loaded graph: NumPy in, NumPy out.

    It holds no conversation, so any number of threads may share it, each with caches of its own.
    """

    def __init__(
        self, inference: Any, manifest: Manifest, embedding: Any = None, learned: Sequence[np.ndarray] = ()
    ) -> None:
        self._inference, self._embedding = inference, embedding
        self.manifest, self.soft_prompt = manifest, learned
        self.kernels: Kernels | None = None  # our own operators, where it uses them
        self.rounding = 0.0  # of the largest logit: what it may differ by, where it computes in fewer bits

    def new_cache(self, *, capacity: int, rows: int = 1) -> KVCache:
        """Make a cache that is empty but for the bundle's learned prompt, where it has one.

        Args:
            capacity: The most positions, prompt and new tokens together, that it will hold.
            rows: B, sequences that advance together and are equally long.

        Raises:
            ManifestError: The bundle's task has no cache.
            PromptError: More positions than the model has.
            OptionError: ``capacity`` or ``rows`` below 1.
        """
        if capacity < 1 or rows < 1:
            raise OptionError(f"a cache of {rows} rows and {capacity} positions, needs at least 1 of each")
        limit = self.manifest.limits.max_position_embeddings
        if capacity > limit:
            raise PromptError(f"a cache of {capacity} positions, the model has {limit}")
        return empty_cache(self.manifest.kv_cache, rows, capacity, self.soft_prompt)

    @overload
    def prefill(
        self,
        tokens: np.ndarray,
        cache: KVCache,
        *,
        all_logits: bool = False,
        chunk_tokens: int = CHUNK_TOKENS,
        text_tokens: int = 0,
        outputs: None = None,
    ) -> np.ndarray: ...

    @overload
    def prefill(
        self,
        tokens: np.ndarray,
        cache: KVCache,
        *,
        all_logits: bool = False,
        chunk_tokens: int = CHUNK_TOKENS,
        text_tokens: int = 0,
        outputs: Sequence[str],
    ) -> Outputs: ...

    def prefill(
        self,
        tokens: np.ndarray,
        cache: KVCache,
        *,
        all_logits: bool = False,
        chunk_tokens: int = CHUNK_TOKENS,
        text_tokens: int = 0,
        outputs: Sequence[str] | None = None,
    ) -> np.ndarray | Outputs:
        """Read tokens into the cache, behind what it holds, a chunk at a time.

        Args:
            tokens: [B, T] int64, T at least 1; where the graph takes embeddings, these, [B, T, hidden_size]
                float32, do too.
            cache: From ``new_cache``; advanced by T.
            all_logits: Return the logits of all T positions, not of the last one.
            chunk_tokens: The most tokens in one run: bounds the memory of the attention scores.
            text_tokens: How long the whole text is, where more of it follows in another call; matters where
                the angles of rotary embedding depend on it (the manifest's ``rope``).
            outputs: Names of hidden states and attentions that are wanted too, of all T positions.

        Returns:
            [B, V] float32 of the last position, or [B, T, V]; with ``outputs``, that as ``logits`` and each
            of them by its name.

        Raises:
            OptionError: The bundle has no such output.
            PromptError: No token, an unknown one, a wrong shape, or no room in the cache.
            SessionError: ONNX Runtime failed, or another thread uses the cache.
        """
        extra = check_outputs(self.manifest, outputs or ())
        with cache.in_use():
            T = check_tokens(self.manifest, tokens, 2, cache)
            # Every chunk is rotated for the whole text, so that the size of the chunks changes nothing.
            rope_length = max(text_tokens, cache.length + T)
            # GroupQueryAttention refuses a past together with B > 1 and T > 1: there, row by row.
            groups = 1 if not cache.in_place else cache.rows
            shape = StepShape(0, cache.rows // groups, T, 0 if all_logits else 1, rope_length, extra)
            found = [
                self._prefill_rows(replace(shape, first_row=group * len(rows)), rows, cache, chunk_tokens)
                for group, rows in enumerate(np.split(tokens, groups))
            ]
            cache.length += T
            whole = found[0]
            if groups > 1:
                whole = {name: np.concatenate([rows[name] for rows in found]) for name in whole}
            return whole["logits"] if outputs is None else whole

    @overload
    def decode(
        self, tokens: np.ndarray, cache: KVCache, lengths: np.ndarray | None = None, *, outputs: None = None
    ) -> np.ndarray: ...

    @overload
    def decode(
        self, tokens: np.ndarray, cache: KVCache, lengths: np.ndarray | None = None, *, outputs: Sequence[str]
    ) -> Outputs: ...

    def decode(
        self,
        tokens: np.ndarray,
        cache: KVCache,
        lengths: np.ndarray | None = None,
        *,
        outputs: Sequence[str] | None = None,
    ) -> np.ndarray | Outputs:
        """Read one token a row and return the logits that follow it.

        Args:
            tokens: [B] int64; where the graph takes embeddings, these, [B, hidden_size] float32, do too.
            cache: From ``new_cache``; advanced by 1.
            lengths: [B] int64, how many positions each row holds, where they differ; the longest holds
                ``cache.length``. Rows begin together in place (``manifest.cache.in_place``), and end
                together in a cache that grows.
            outputs: As for ``prefill``.

        Returns:
            [B, V] float32; with ``outputs``, that as ``logits`` and each of them by its name.

        Raises:
            OptionError: The bundle has no such output.
            PromptError: An unknown token, a wrong shape, or no room in the cache.
            SessionError: ONNX Runtime failed, or another thread uses the cache.
        """
        extra = check_outputs(self.manifest, outputs or ())
        with cache.in_use():
            check_tokens(self.manifest, tokens, 1, cache)
            if lengths is not None:
                check_lengths(lengths, cache)
            shape = StepShape(0, cache.rows, 1, 1, outputs=extra)
            found = self._run(shape, tokens[:, None], cache, lengths)
            cache.length += 1
            logits = found["logits"][:, -1].copy()
            return logits if outputs is None else found | {"logits": logits}

    def embed_tokens(self, token_ids: np.ndarray) -> np.ndarray:
        """Look embeddings up, where the graph takes them in place of token ids.

        Args:
            token_ids: [B, T] int64.

        Returns:
            [B, T, hidden_size] float32: what ``prefill`` takes, and each [B, hidden_size] of it ``decode``.

        Raises:
            OptionError: The graph takes token ids.
            SessionError: ONNX Runtime failed.
        """
        if self._embedding is None:
            raise OptionError("the graph takes token ids, not embeddings", "export with --inputs-embeds")
        with running():
            embedded: np.ndarray = self._embedding.run([EMBEDS], {"input_ids": token_ids})[0]
        return embedded

    def end_profiling(self) -> str:
        """What was recorded of a session opened with ``profile``: JSON, Chrome's trace format."""
        return recorded(self._inference)

    def run(
        self, feeds: dict[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the graph itself, as any user of ONNX Runtime would.

        Args:
            feeds: Every input of the manifest; padded batches are allowed. ``input_ids`` do for embeddings.
            outputs: Which are wanted; None is all.

        Raises:
            SessionError: ONNX Runtime failed.
        """
        names = [spec.name for spec in self.manifest.outputs] if outputs is None else list(outputs)
        if self._embedding is not None and "input_ids" in feeds:
            feeds = feeds | {EMBEDS: self.embed_tokens(feeds["input_ids"])}
            del feeds["input_ids"]
        with running():
            return dict(zip(names, self._inference.run(names, feeds), strict=True))

    def _prefill_rows(
        self, shape: StepShape, tokens: np.ndarray, cache: KVCache, chunk_tokens: int
    ) -> Outputs:
        """Read some rows' T tokens, a chunk at a time: ``logits`` [B, V], or [B, T, V] where all are kept."""
        past, tensors, every = cache.length, cache.tensors, shape.num_logits_to_keep == 0
        logits, extras = list[np.ndarray](), list[Outputs]()
        try:
            for start in range(0, shape.tokens, chunk_tokens):
                chunk = tokens[:, start : start + chunk_tokens]
                found = self._run(replace(shape, tokens=chunk.shape[1]), chunk, cache)
                logits = [*logits, found.pop("logits").copy()] if every else [found.pop("logits")]
                extras.append(found)
                cache.length += chunk.shape[1]
        except SessionError:
            cache.tensors = tensors
            raise
        finally:
            cache.length = past
        kept = np.concatenate(logits, axis=1) if every else logits[0][:, -1].copy()
        return {"logits": kept} | join_chunks(self.manifest, extras)

    def _run(
        self, shape: StepShape, tokens: np.ndarray, cache: KVCache, lengths: np.ndarray | None = None
    ) -> Outputs:
        """One run; the logits are overwritten by the next one, the extras are not."""
        if cache.step is None or cache.step.shape != shape:
            cache.step = Step(self._inference, self.manifest, cache, shape)
        if self._embedding is not None and tokens.dtype == np.int64:
            tokens = self.embed_tokens(tokens)
        with running():
            logits = cache.step.run(tokens, cache, lengths)
        return {"logits": logits} | cache.step.extras


def open_session(
    folder: Path,
    manifest: Manifest,
    *,
    threads: int | None = None,
    widen_at_load: bool = True,
    profile: bool = False,
    device: Device = "cpu",
    own_kernels: bool = True,
) -> Session:
    """Load the bundle's graph with ONNX Runtime.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.
        threads: For the arithmetic; None is every physical core this process may use.
        widen_at_load: Convert 16-bit weights to float32 once, at load. False converts them in every run:
            a session that runs a few times only (a self-test) is then ready at once and stays small.
        profile: Record every operator, for ``end_profiling``.
        device: ``cpu`` or ``cuda``, and nothing else where that cannot be had.
        own_kernels: Compute with our own operators where they are there. False never does.

    Raises:
        MissingExtraError: onnxruntime is not installed, or not the one for this device.
        ManifestError: The learned prompt's file is not what the manifest says.
        OptionError: ``threads`` below 1.
        SessionError: The graph cannot be loaded, or is not the one the manifest describes.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads is {threads}, needs at least 1")
    try:
        import onnxruntime
    except ImportError as error:
        hint = "pip install 'llama-export[cpu]'"
        raise MissingExtraError(f"onnxruntime is not installed ({error})", hint) from None
    provider = find_provider(onnxruntime, device)
    cores, disabled = threads or available_cores(), None if widen_at_load else ["ConstantFolding"]
    loaded = load_bundle(onnxruntime, folder, manifest, cores, disabled, provider, profile, own_kernels)
    session = Session(loaded.inference, manifest, loaded.embedding, read_soft_prompt(folder, manifest))
    session.kernels = loaded.kernels
    return session


def open_graph(
    folder: Path, manifest: Manifest, graph: bytes, *, threads: int | None = None
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Load another graph over a bundle's weights, such as a part of its own, to look inside.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.
        graph: A serialised ONNX model whose external data are the bundle's.
        threads: As for ``open_session``.

    Returns:
        From inputs by name, of which those that the graph lacks are left out, to all its outputs by name.

    Raises:
        SessionError: ONNX Runtime cannot load the graph, or later, run it.
    """
    import onnxruntime

    options = session_options(onnxruntime, folder, manifest, threads or available_cores())
    data_folder = str((folder / manifest.model.external_data_folder).resolve())
    options.add_session_config_entry(DATA_FOLDER, data_folder)
    inference = load_graph(onnxruntime, graph, options, folder / manifest.model.path, ["ConstantFolding"])
    embedding = load_embedding(onnxruntime, folder, manifest, options)
    inputs = {spec.name for spec in inference.get_inputs()}
    names = [spec.name for spec in inference.get_outputs()]

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if embedding is not None:
            feeds = feeds | {EMBEDS: embedding.run([EMBEDS], {"input_ids": feeds["input_ids"]})[0]}
        taken = {name: array for name, array in feeds.items() if name in inputs}
        with running():
            return dict(zip(names, inference.run(names, taken), strict=True))

    return run
