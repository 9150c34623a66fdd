"""What the matrices of a model read when it reads a text: layer by layer, one layer in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock

import torch
from torch import Tensor, nn

from llama_export.model import GrowingCache, LlamaConfig, make_step
from llama_export.model.layer import DecoderLayer, RMSNorm
from llama_export.model.rope import inverse_frequencies
from llama_export.model.step import Step
from llama_export.quantize.gptq import error_feedback

# The module whose input a matrix shares, by the last part of its name.
_INPUT_OF = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj"), "self_attn.q_proj"),
    "o_proj": "self_attn.o_proj",
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj"), "mlp.gate_proj"),
    "down_proj": "mlp.down_proj",
}
_HEAD = "lm_head"


class Calibration:
    """The inputs of every matrix over some windows of a text, as GPTQ needs them.

    Layers must be asked for in their order; what a layer read is forgotten when the next is asked for.

    Args:
        config: The architecture.
        read: From a weight's name to its values, in any float dtype.
        windows: Token ids, each window read by itself.
    """

    def __init__(
        self, config: LlamaConfig, read: Callable[[str], Tensor], windows: Sequence[Sequence[int]]
    ) -> None:
        self._config, self._read = config, read
        self._layers = self._read_layers(windows)
        self._layer = -1
        self._grams: dict[str, Tensor] = {}
        self._feedbacks: dict[str, Tensor] = {}

    def feedback(self, name: str) -> Tensor | None:
        """What ``gptq`` needs for a matrix; None for one that no input is multiplied with, an embedding.

        Args:
            name: Of the weight in the checkpoint, or of the one that several are joined to.
        """
        module = name.removesuffix(".weight")
        if module == "model.embed_tokens":
            return None
        layer = self._config.num_hidden_layers if module == _HEAD else int(module.split(".")[2])
        assert layer >= self._layer, "layers are read in their order"
        while self._layer < layer:
            self._grams = next(self._layers)
            self._feedbacks = {}
            self._layer += 1
        key = _HEAD if module == _HEAD else _INPUT_OF[module.rpartition(".")[2]]
        if key not in self._feedbacks:
            self._feedbacks[key] = error_feedback(self._grams.pop(key))
        return self._feedbacks[key]

    @torch.no_grad()
    def _read_layers(self, windows: Sequence[Sequence[int]]) -> Iterator[dict[str, Tensor]]:
        """Each layer's sums of x xT [K, K] by module, then the head's."""
        config = self._config
        embedding = self._read("model.embed_tokens.weight")
        hidden = [embedding[torch.tensor(ids)].float() for ids in windows]  # [T, hidden_size] each
        del embedding
        inv_freq = inverse_frequencies(config)
        steps = []
        for ids in windows:
            positions = torch.arange(len(ids))[None]
            steps.append(make_step(torch.ones_like(positions), positions, inv_freq, config))
        for index in range(config.num_hidden_layers):
            layer = self._build(index)
            grams: dict[str, Tensor] = {}
            for key in dict.fromkeys(_INPUT_OF.values()):
                layer.get_submodule(key).register_forward_pre_hook(_adding_to(grams, key))
            # A window a core: threads within an operator would wait for each other.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                hidden = list(pool.map(partial(_read_window, layer), hidden, steps))
            del layer
            yield grams
        norm = RMSNorm(config, "eager")
        norm.weight = nn.Parameter(self._read("model.norm.weight").float())
        grams = {}
        add = _adding_to(grams, _HEAD)
        for states in hidden:
            add(norm, (norm(states),))
        yield grams

    def _build(self, index: int) -> DecoderLayer:
        with torch.device("meta"):
            layer = DecoderLayer(self._config, 0, "eager")
        prefix = f"model.layers.{index}."
        names = self._config.layer_shapes(index)
        state = {name.removeprefix(prefix): self._read(name).float() for name in names}
        layer.load_state_dict(state, assign=True)
        return layer


def _adding_to(grams: dict[str, Tensor], key: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    lock = Lock()

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states = inputs[0].detach().float()  # [T, K]
        gram = states.T @ states
        with lock:
            grams[key] = grams[key].add_(gram) if key in grams else gram

    return add


@torch.no_grad()  # which holds for a thread, not for those it starts
def _read_window(layer: DecoderLayer, hidden: Tensor, step: Step) -> Tensor:
    read: Tensor = layer(hidden, step, GrowingCache())
    return read
