"""An opened bundle that maps token ids to logits, and nothing else.

The only file that imports ONNX Runtime, and only when a session is opened. B rows, T new
tokens, P past tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_runtime.cache import KVCache, cache_names, empty_cache
from llama_runtime.cores import available_cores
from llama_runtime.errors import MissingExtraError, OptionError, PromptError, SessionError
from llama_runtime.manifest import Manifest
from llama_runtime.step import Step, StepShape

CHUNK_TOKENS = 512
FED_INPUTS = ("input_ids", "attention_mask", "position_ids")
LOG_ERRORS_ONLY = 3
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class Session:
    """A loaded graph: NumPy in, NumPy out.

    It holds no conversation, so any number of threads may share it, each with caches of its own; a cache
    that two threads use at once is refused.
    """

    def __init__(self, inference: Any, manifest: Manifest) -> None:
        self._inference = inference
        self.manifest = manifest

    def new_cache(self, *, capacity: int, rows: int = 1) -> KVCache:
        """Make an empty cache.

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
        return empty_cache(self.manifest.kv_cache, rows, capacity)

    def prefill(
        self,
        token_ids: np.ndarray,
        cache: KVCache,
        *,
        all_logits: bool = False,
        chunk_tokens: int = CHUNK_TOKENS,
        text_tokens: int = 0,
    ) -> np.ndarray:
        """Read tokens into the cache, behind what it holds, a chunk at a time.

        Args:
            token_ids: [B, T] int64, T at least 1.
            cache: From ``new_cache``; advanced by T.
            all_logits: Return the logits of all T positions, not of the last one.
            chunk_tokens: The most tokens in one run: bounds the memory of the attention scores.
            text_tokens: How long the whole text is, where more of it follows in another call; matters where
                the angles of rotary embedding depend on it (the manifest's ``rope``).

        Returns:
            [B, V] float32 of the last position, or [B, T, V].

        Raises:
            PromptError: No token, an unknown one, a wrong shape, or no room in the cache.
            SessionError: ONNX Runtime failed, or another thread uses the cache.
        """
        with cache.in_use():
            T = self._check_tokens(token_ids, 2, cache)
            # Every chunk is rotated for the whole text, so that the size of the chunks changes nothing.
            rope_length = max(text_tokens, cache.length + T)
            # GroupQueryAttention refuses a past together with B > 1 and T > 1: there, row by row.
            groups = 1 if not cache.in_place else cache.rows
            logits = [
                self._prefill_rows(rows, group * len(rows), cache, all_logits, chunk_tokens, rope_length)
                for group, rows in enumerate(np.split(token_ids, groups))
            ]
            cache.length += T
            return np.concatenate(logits) if groups > 1 else logits[0]

    def decode(self, token_ids: np.ndarray, cache: KVCache, lengths: np.ndarray | None = None) -> np.ndarray:
        """Read one token a row and return the logits that follow it.

        Args:
            token_ids: [B] int64.
            cache: From ``new_cache``; advanced by 1.
            lengths: [B] int64, how many positions each row holds, where they differ; the longest holds
                ``cache.length``. Rows begin together in place (``manifest.cache.in_place``), and end
                together in a cache that grows.

        Returns:
            [B, V] float32.

        Raises:
            PromptError: An unknown token, a wrong shape, or no room in the cache.
            SessionError: ONNX Runtime failed, or another thread uses the cache.
        """
        with cache.in_use():
            self._check_tokens(token_ids, 1, cache)
            if lengths is not None:
                _check_lengths(lengths, cache)
            shape = StepShape(0, cache.rows, 1, 1)
            logits = self._run(shape, token_ids[:, None], cache, lengths)  # [B, 1, V]
            cache.length += 1
            return logits[:, -1].copy()

    def run(
        self, feeds: dict[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the graph itself, as any user of ONNX Runtime would.

        Args:
            feeds: Every input of the manifest, by name; padded batches are allowed here.
            outputs: Which are wanted; None is all.

        Raises:
            SessionError: ONNX Runtime failed.
        """
        names = [spec.name for spec in self.manifest.outputs] if outputs is None else list(outputs)
        try:
            return dict(zip(names, self._inference.run(names, feeds), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions share no other base.
            raise SessionError(f"ONNX Runtime cannot run the graph: {_first_line(error)}") from error

    def _prefill_rows(
        self,
        token_ids: np.ndarray,
        first_row: int,
        cache: KVCache,
        all_logits: bool,
        chunk_tokens: int,
        rope_length: int,
    ) -> np.ndarray:
        B, T = token_ids.shape
        past, tensors, chunks, logits = cache.length, cache.tensors, [], np.empty(0, np.float32)
        try:
            for start in range(0, T, chunk_tokens):
                chunk = token_ids[:, start : start + chunk_tokens]
                shape = StepShape(first_row, B, chunk.shape[1], 0 if all_logits else 1, rope_length)
                logits = self._run(shape, chunk, cache)
                if all_logits:
                    chunks.append(logits.copy())
                cache.length += chunk.shape[1]
        except SessionError:
            cache.tensors = tensors
            raise
        finally:
            cache.length = past
        return np.concatenate(chunks, axis=1) if all_logits else logits[:, -1].copy()

    def _run(
        self, shape: StepShape, token_ids: np.ndarray, cache: KVCache, lengths: np.ndarray | None = None
    ) -> np.ndarray:
        if cache.step is None or cache.step.shape != shape:
            cache.step = Step(self._inference, self.manifest, cache, shape)
        try:
            return cache.step.run(token_ids, cache, lengths)
        except Exception as error:  # ONNX Runtime's exceptions share no other base.
            raise SessionError(f"ONNX Runtime cannot run the graph: {_first_line(error)}") from error

    def _check_tokens(self, token_ids: np.ndarray, axes: int, cache: KVCache) -> int:
        if token_ids.ndim != axes or token_ids.shape[0] != cache.rows or token_ids.dtype != np.int64:
            raise PromptError(
                f"tokens are {token_ids.dtype} {list(token_ids.shape)}, needs int64 of {axes} axes, "
                f"the first {cache.rows}"
            )
        T = token_ids.shape[1] if axes == 2 else 1
        if T == 0:
            raise PromptError("no tokens, needs at least one")
        low, high, V = int(token_ids.min()), int(token_ids.max()), self.manifest.limits.vocab_size
        if low < 0 or high >= V:
            raise PromptError(f"token id {low if low < 0 else high}, the vocabulary is 0 to {V - 1}")
        cache.require_room(T)
        return T


def _check_lengths(lengths: np.ndarray, cache: KVCache) -> None:
    if lengths.shape != (cache.rows,) or lengths.dtype != np.int64:
        raise PromptError(
            f"lengths are {lengths.dtype} {list(lengths.shape)}, needs int64 [{cache.rows}], one a row"
        )
    if int(lengths.max()) != cache.length or int(lengths.min()) < 0:
        raise PromptError(
            f"lengths are {int(lengths.min())} to {int(lengths.max())}, the longest needs {cache.length}, "
            "which the cache holds"
        )


def open_session(
    folder: Path, manifest: Manifest, *, threads: int | None = None, widen_at_load: bool = True
) -> Session:
    """Load the bundle's graph with ONNX Runtime.

    Args:
        folder: The bundle.
        manifest: What ``read_manifest`` returned for it.
        threads: For the arithmetic; None is every physical core this process may use.
        widen_at_load: Convert 16-bit weights to float32 once, at load. False converts them in every run:
            a session that runs a few times only (a self-test) is then ready at once and stays small.

    Raises:
        MissingExtraError: onnxruntime is not installed.
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
    options = _session_options(onnxruntime, folder, manifest, threads or available_cores())
    path = folder / manifest.model.path
    inference = _load(onnxruntime, path, options, path, None if widen_at_load else ["ConstantFolding"])
    _check_contract(path, inference, manifest)
    return Session(inference, manifest)


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

    options = _session_options(onnxruntime, folder, manifest, threads or available_cores())
    data_folder = str((folder / manifest.model.external_data_folder).resolve())
    options.add_session_config_entry(_DATA_FOLDER, data_folder)
    inference = _load(onnxruntime, graph, options, folder / manifest.model.path, ["ConstantFolding"])
    inputs = {spec.name for spec in inference.get_inputs()}
    names = [spec.name for spec in inference.get_outputs()]

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        taken = {name: array for name, array in feeds.items() if name in inputs}
        try:
            return dict(zip(names, inference.run(names, taken), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions share no other base.
            raise SessionError(f"ONNX Runtime cannot run the graph: {_first_line(error)}") from error

    return run


def _load(onnxruntime: Any, model: Path | bytes, options: Any, path: Path, disabled: list[str] | None) -> Any:
    try:
        return onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except Exception as error:  # ONNX Runtime's exceptions share no other base.
        raise SessionError(f"{path}: ONNX Runtime cannot load it: {_first_line(error)}") from error


def _session_options(onnxruntime: Any, folder: Path, manifest: Manifest, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A memory pattern is kept for every input shape, and every decode has a new one.
    options.enable_mem_pattern = False
    # Spinning threads take the cores from whatever else runs on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if manifest.precision == "float32":
        # The weights stay in the mapped file; packing would copy every one of them, for many seconds.
        options.add_session_config_entry("session.disable_prepacking", "1")
    data_folder = folder / manifest.model.external_data_folder
    if data_folder.resolve() != (folder / manifest.model.path).parent.resolve():
        options.add_session_config_entry(_DATA_FOLDER, str(data_folder.resolve()))
    return options


def _check_contract(path: Path, inference: Any, manifest: Manifest) -> None:
    past, present = cache_names(manifest.cache) if manifest.cache else ([], [])
    results = ["logits", *present] if manifest.cache else [spec.name for spec in manifest.outputs]
    required = {spec.name for spec in inference.get_inputs()}
    optional = {spec.name for spec in inference.get_overridable_initializers()}
    outputs = {spec.name for spec in inference.get_outputs()}
    declared = {spec.name for spec in manifest.inputs}
    wrong = sorted((required ^ declared) | (required - {*FED_INPUTS, *past}) | (set(past) - required))
    if wrong:
        raise SessionError(f"{path}: inputs differ from the manifest's: {', '.join(wrong[:4])}")
    missing = sorted({*results} - outputs) + sorted(
        {spec.name for spec in manifest.optional_inputs} - optional
    )
    if missing:
        raise SessionError(f"{path}: the manifest names {', '.join(missing[:4])}, the graph does not")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
