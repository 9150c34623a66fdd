"""An opened bundle that maps token ids to logits, and nothing else.

B rows, T new tokens, P past tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from llama_runtime.cache import KVCache, empty_cache
from llama_runtime.errors import OptionError, PromptError, SessionError
from llama_runtime.extras import Outputs, check_outputs, join_chunks
from llama_runtime.feeding import check_lengths, check_tokens
from llama_runtime.kernels import Kernels
from llama_runtime.loading import recorded, running
from llama_runtime.manifest import EMBEDS, Manifest
from llama_runtime.step import Step, StepShape

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
            chunk_tokens: The most tokens in one run, of all its rows together (but one of each): bounds the
                memory of a run.
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
            # ONNX Runtime's GroupQueryAttention refuses a past together with B > 1 and T > 1; ours does not.
            groups = cache.rows if cache.in_place and self.kernels is None else 1
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
        width = max(1, chunk_tokens // shape.rows)
        try:
            for start in range(0, shape.tokens, width):
                chunk = tokens[:, start : start + width]
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
