"""The reference holds one layer of the weights at a time, however deep the model is."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_checkpoints import CONFIGS, random_weights, with_layers

from llama_export.model import HeadConfig
from llama_export.parity.reference import reference_logits, reference_outputs


class Reader:
    """Hands out weights, and counts the bytes of those that somebody still holds."""

    def __init__(self, weights):
        self.weights, self.held, self.peak, self.read = weights, 0, 0, 0

    def __call__(self, name):
        array = self.weights[name].numpy().copy()
        self.held, self.read = self.held + array.nbytes, self.read + array.nbytes
        self.peak = max(self.peak, self.held)
        weakref.finalize(array, self.let_go, array.nbytes)
        return torch.from_numpy(array)

    def let_go(self, nbytes):
        self.held -= nbytes


@pytest.mark.parametrize("layers", [8, 24])
@pytest.mark.parametrize("task", ["text-generation", "question-answering"])
def test_one_layer_is_held_at_a_time(layers, task):
    config = replace(with_layers(CONFIGS["gqa"], layers), head=HeadConfig(task))
    reader = Reader(random_weights(config))
    reference = reference_logits if config.generates else reference_outputs
    found = reference(config, reader, [[1, 2, 3], [4, 5]])
    assert len(found) == 2
    layer = sum(4 * int(np.prod(shape)) for shape in config.layer_shapes(0).values())
    largest = max(4 * int(np.prod(shape)) for shape in config.tensor_shapes().values())
    assert reader.read == sum(4 * int(np.prod(shape)) for shape in config.tensor_shapes().values())
    # The layer, and the weight that is read ahead while the one before it is handed over.
    assert reader.peak <= layer + 2 * largest
    assert reader.peak < reader.read / 3
