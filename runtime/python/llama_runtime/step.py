"""One run of the graph with everything bound: B rows, T new tokens, P past tokens.

Between two decodes only the mask's length changes (and, when the cache grows, the cache):
a step keeps its buffers and its IOBinding, and rebinds nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_runtime.cache import KVCache, cache_names
from llama_runtime.device_memory import DeviceRows
from llama_runtime.extras import Outputs, shape_of
from llama_runtime.manifest import EMBEDS, Manifest

CPU = ("cpu", 0)


@dataclass(frozen=True)
class StepShape:
    """What a step is bound for; a run that differs in any of it needs another step.

    Attributes:
        first_row: The first of the cache's rows that take part.
        rows: B, how many take part.
        tokens: T.
        num_logits_to_keep: How many of the T positions get logits, from the end; 0 is all.
        rope_length: The length that the text will have when its last chunk is read; 0 for a whole text.
        outputs: Names of the extra outputs that are wanted.
    """

    first_row: int
    rows: int
    tokens: int
    num_logits_to_keep: int
    rope_length: int = 0
    outputs: tuple[str, ...] = ()


class Step:
    """Buffers and bindings for runs of one shape over one cache.

    Attributes:
        shape: What it is bound for.
        extras: What the last run gave besides logits and cache; arrays of its own.
    """

    def __init__(self, inference: Any, manifest: Manifest, cache: KVCache, shape: StepShape) -> None:
        B, T = shape.rows, shape.tokens
        self.shape = shape
        self.extras: Outputs = {}
        self._inference = inference
        self._binding = inference.io_binding()
        self._past_names, self._present_names = cache_names(manifest.kv_cache)
        specs = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
        self._extra_specs = [specs[name] for name in shape.outputs]
        tokens, dtype = ("input_ids", np.int64) if EMBEDS not in specs else (EMBEDS, np.float32)
        self._tokens = np.zeros(shape_of(specs[tokens], B, T, 0), dtype)
        self._position_ids = np.zeros((B, T), np.int64)
        # Any [B, S] mask of ones is a prefix of this buffer.
        self._ones = np.ones(B * (cache.offset + cache.capacity), np.int64)
        self._mask = self._ones
        self._keep = np.array([shape.num_logits_to_keep], np.int64)
        self._rope_length = np.array([shape.rope_length], np.int64)
        optional = [spec.name for spec in manifest.optional_inputs]
        kept = shape.num_logits_to_keep if "num_logits_to_keep" in optional else 0
        self._logits = np.empty((B, kept or T, manifest.limits.vocab_size), np.float32)

        # Outputs are returned in the order they are first bound: logits, what else is wanted, the cache.
        self._bind_output("logits", self._logits)
        self._bind_extras(0)
        self._bind_input(tokens, self._tokens)
        if "position_ids" in [spec.name for spec in manifest.inputs]:
            self._bind_input("position_ids", self._position_ids)
        if "num_logits_to_keep" in optional:
            self._bind_input("num_logits_to_keep", self._keep)
        if "rope_length" in optional:
            self._bind_input("rope_length", self._rope_length)
        if cache.in_place:
            self._bind_buffers(cache)

    def run(self, tokens: np.ndarray, cache: KVCache, lengths: np.ndarray | None = None) -> np.ndarray:
        """Run the graph on the next tokens; ``cache.length`` stays for the caller to advance.

        Args:
            tokens: [B, T] int64, or their embeddings [B, T, hidden_size] float32 where the graph takes them.
            cache: The one this step was made for.
            lengths: [B] int64, how many positions each row has, where they differ; T is 1 then.

        Returns:
            [B, N, V] float32, N the positions kept; overwritten by the next run.
        """
        B, T, P = self.shape.rows, self.shape.tokens, cache.offset + cache.length
        self._tokens[...] = tokens
        self._bind_extras(P)
        if lengths is None:
            self._position_ids[...] = np.arange(P, P + T)
            self._binding.bind_input("attention_mask", *CPU, np.int64, (B, P + T), self._ones.ctypes.data)
        else:
            lengths = cache.offset + lengths
            self._position_ids[...] = lengths[:, None]
            self._mask = ragged_mask(lengths + 1, None if cache.in_place else P + 1)
            self._bind_input("attention_mask", self._mask)
        if not cache.in_place:
            self._bind_grown(cache)
        self._inference.run_with_iobinding(self._binding)
        if not cache.in_place:
            cache.tensors = self._binding.get_outputs()[1 + len(self.extras) :]
        return self._logits

    def _bind_extras(self, past: int) -> None:
        rows, new = self.shape.rows, self.shape.tokens
        for spec in self._extra_specs:
            self.extras[spec.name] = np.empty(shape_of(spec, rows, new, past + new), np.float32)
            self._bind_output(spec.name, self.extras[spec.name])

    def _bind_buffers(self, cache: KVCache) -> None:
        first = self.shape.first_row
        for past, present, tensor in zip(self._past_names, self._present_names, cache.tensors, strict=True):
            rows = tensor[first : first + self.shape.rows]  # [B, K, C, D]
            self._bind_input(past, rows)
            self._bind_output(present, rows)

    def _bind_grown(self, cache: KVCache) -> None:
        for past, present, tensor in zip(self._past_names, self._present_names, cache.tensors, strict=True):
            if isinstance(tensor, np.ndarray):
                self._bind_input(past, tensor)
            else:
                self._binding.bind_ortvalue_input(past, tensor)
            # An output that stays bound would be taken for a buffer of the right size.
            self._binding.bind_output(present, *CPU)

    def _bind_input(self, name: str, array: np.ndarray | DeviceRows) -> None:
        self._binding.bind_input(name, *_place(array))

    def _bind_output(self, name: str, array: np.ndarray | DeviceRows) -> None:
        self._binding.bind_output(name, *_place(array))


def _place(array: np.ndarray | DeviceRows) -> tuple[Any, ...]:
    if isinstance(array, DeviceRows):
        return array.place
    return *CPU, array.dtype.type, array.shape, array.ctypes.data


def ragged_mask(lengths: np.ndarray, width: int | None) -> np.ndarray:
    """The attention mask of rows that are not equally long.

    Args:
        lengths: [B] int64, positions of each row, the new one included.
        width: S of a growing cache, whose rows end together; None in place, where rows begin together.

    Returns:
        [B, S] int64.
    """
    slots = np.arange(int(lengths.max()) if width is None else width)
    seen = slots < lengths[:, None] if width is None else slots >= width - lengths[:, None]
    mask: np.ndarray = seen.astype(np.int64)
    return mask
