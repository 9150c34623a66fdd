"""What ``gpu_check.py`` compares: every way to run one checkpoint on a GPU, behind one small interface.

Each path keeps one cache of ``capacity`` slots. The reference is the eager model in float32 on the weights
that all of them share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from played_engine import PlayedEngine
from torch import Tensor

from llama_export.checkpoint import Checkpoint
from llama_export.model import LlamaConfig, LlamaForCausalLM, StaticCache
from llama_export.model.rope import inverse_frequencies
from llama_export.model.step import Step, angles, visible_slots
from llama_runtime.engine_file import read_engine_file
from llama_runtime.manifest import read_manifest
from llama_runtime.session import Session
from llama_runtime.tensorrt_session import EngineSession, open_engine_session


class RunPath(Protocol):
    """One way to run the model, at one position of one text."""

    def read(self, tokens: np.ndarray, start: int) -> np.ndarray:
        """Read [T] tokens at slots from ``start`` on; [V] float32 logits of the last."""
        ...

    def spoil(self) -> None:
        """Fill every slot of the cache with numbers that would show."""
        ...


GARBAGE = 30.0
PROMPT, STEPS = 200, 8


def read_all(path: RunPath, ids: np.ndarray, buckets: tuple[int, ...]) -> np.ndarray:
    """A prompt in two chunks, some decodes, then one at the end of every bucket; [N, V] logits of all."""
    path.read(ids[: PROMPT // 2], 0)
    got = [path.read(ids[PROMPT // 2 : PROMPT], PROMPT // 2)]
    got += [path.read(ids[at : at + 1], at) for at in range(PROMPT, PROMPT + STEPS)]
    at = PROMPT + STEPS
    for bucket in buckets:
        if bucket > at + 1:
            path.read(ids[at : bucket - 1], at)
            got.append(path.read(ids[bucket - 1 : bucket], bucket - 1))
            at = bucket
    return np.stack(got)


class TorchPath:
    """The PyTorch model on an attention path, with a cache in place."""

    def __init__(self, model: LlamaForCausalLM, capacity: int) -> None:
        weight = model.head_weight
        self.model, self.device = model, weight.device
        self.cache = StaticCache(model.config, 1, capacity, weight.dtype, weight.device)

    @torch.inference_mode()
    def read(self, tokens: np.ndarray, start: int) -> np.ndarray:
        """As ``RunPath`` says."""
        self.cache.length = start
        ids = torch.from_numpy(tokens).to(self.device)[None]
        logits: np.ndarray = (
            self.model(ids, cache=self.cache, num_logits_to_keep=1)[0, -1].float().cpu().numpy()
        )
        return logits

    def spoil(self) -> None:
        """As ``RunPath`` says."""
        self.cache.keys.fill_(GARBAGE)
        self.cache.values.fill_(GARBAGE)


class _BucketCache:
    """Slots written at a position that is a tensor: shapes and addresses never change, so it compiles."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor, bucket: int) -> None:
        self.keys, self.values, self.position, self.bucket = keys, values, position, bucket
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As ``model.KVCache`` says."""
        self.keys[layer].index_copy_(2, self.position, keys)
        self.values[layer].index_copy_(2, self.position, values)
        return self.keys[layer][:, :, : self.bucket], self.values[layer][:, :, : self.bucket]


class CompiledPath(TorchPath):
    """The same model, decoding through ``torch.compile`` with CUDA graphs, in buckets as an engine does."""

    def __init__(self, model: LlamaForCausalLM, capacity: int, buckets: tuple[int, ...], mode: str) -> None:
        super().__init__(model, capacity)
        self.buckets = buckets
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        self._position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._decode = torch.compile(self._step, mode=mode, dynamic=False, fullgraph=True)

    def _step(self, token: Tensor, position: Tensor, bucket: int) -> Tensor:
        body, config = self.model.model, self.model.config
        cos, sin = angles(position[None], body.inv_freq, config)
        slots = torch.arange(bucket, device=position.device)
        step = Step(cos, sin, visible_slots(slots, position[None]))
        cache = _BucketCache(self.cache.keys, self.cache.values, position, bucket)
        hidden = body.embed_tokens(token).flatten(0, 1)
        for layer in body.layers:
            hidden = layer(hidden, step, cache)
        return torch.nn.functional.linear(body.norm(hidden), self.model.head_weight)[0].float()

    @torch.inference_mode()
    def read(self, tokens: np.ndarray, start: int) -> np.ndarray:
        """As ``RunPath`` says."""
        if len(tokens) > 1:
            return super().read(tokens, start)
        self._token.fill_(int(tokens[0]))
        self._position.fill_(start)
        bucket = next(bucket for bucket in self.buckets if bucket > start)
        logits: np.ndarray = self._decode(self._token, self._position, bucket).cpu().numpy()
        return logits


class SessionPath:
    """A session of ``llama_runtime``, ONNX Runtime's or an engine's."""

    def __init__(self, session: Session, capacity: int) -> None:
        self.session = session
        self.cache = session.new_cache(capacity=capacity)

    def read(self, tokens: np.ndarray, start: int) -> np.ndarray:
        """As ``RunPath`` says."""
        self.cache.truncate(start)
        if len(tokens) == 1:
            return self.session.decode(tokens, self.cache)[0]
        return self.session.prefill(tokens[None], self.cache)[0]

    def spoil(self) -> None:
        """As ``RunPath`` says."""
        shape = self.session.manifest.kv_cache
        dims = (shape.num_key_value_heads, self.cache.capacity, shape.head_dim)
        self.cache.write_row([np.full(dims, GARBAGE, shape.dtype)] * (2 * shape.num_hidden_layers))


def torch_model(source: Checkpoint, attention: Any, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """Load a checkpoint into the PyTorch model, tensor by tensor."""
    config: LlamaConfig = source.config
    with torch.device("meta"):
        model = LlamaForCausalLM(config, attention)
    weights = {name: tensor.read().to(device, dtype) for name, tensor in source.tensors.items()}
    model.load_state_dict(weights, assign=True)
    model.model.inv_freq = inverse_frequencies(config).to(device)
    return model.eval()


def engine_session(bundle: Path, name: str) -> Session:
    """An engine on this machine's GPU."""
    return open_engine_session(bundle, read_manifest(bundle), name)


def played_session(bundle: Path, name: str, threads: int) -> Session:
    """The same session over the engine's graph in ONNX Runtime, where there is no GPU."""
    file = read_engine_file(bundle, name)
    return EngineSession(PlayedEngine(bundle / file.onnx.path, threads), file, read_manifest(bundle))
