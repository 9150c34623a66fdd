"""A model that reads some windows of a text: layer by layer, one layer in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from llama_export.model import GrowingCache, LlamaConfig, make_step
from llama_export.model.layer import DecoderLayer
from llama_export.model.rope import inverse_frequencies
from llama_export.model.step import Step

Read = Callable[[str], Tensor]
"""From a weight's name to its values, in any float dtype."""


def read_layers(
    config: LlamaConfig, read: Read, windows: Sequence[Sequence[int]], watch: Callable[[DecoderLayer], None]
) -> Iterator[list[Tensor]]:
    """Compute layer after layer, in float32.

    Args:
        config: The architecture.
        read: Asked for one weight at a time, in the order of computation.
        windows: Token ids, each window read by itself.
        watch: Called with every layer before it computes, to add its hooks; these may run in several threads.

    Yields:
        Behind each layer, the hidden states of the windows, [T, hidden_size] each.
    """
    embedding = read("model.embed_tokens.weight")
    hidden = [embedding[torch.tensor(ids)].float() for ids in windows]
    del embedding
    inv_freq = inverse_frequencies(config)
    steps = []
    for ids in windows:
        positions = torch.arange(len(ids))[None]
        steps.append(make_step(torch.ones_like(positions), positions, inv_freq, config))
    for index in range(config.num_hidden_layers):
        layer = _build(config, read, index)
        watch(layer)
        # A window a core: threads within an operator would wait for each other.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            hidden = list(pool.map(partial(_read_window, layer), hidden, steps))
        del layer
        yield hidden


def _build(config: LlamaConfig, read: Read, index: int) -> DecoderLayer:
    with torch.device("meta"):
        layer = DecoderLayer(config, 0, "eager")
    prefix = f"model.layers.{index}."
    state = {name.removeprefix(prefix): read(name).float() for name in config.layer_shapes(index)}
    layer.load_state_dict(state, assign=True)
    return layer


@torch.no_grad()  # which holds for a thread, not for those it starts
def _read_window(layer: DecoderLayer, hidden: Tensor, step: Step) -> Tensor:
    read: Tensor = layer(hidden, step, GrowingCache())
    return read
