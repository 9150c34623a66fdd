"""What a bundle's graph does to keys and values on their way into the cache, for the reference to do too."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from llama_export.graph.passes import KEY_SCALE, VALUE_SCALE
from llama_export.quantize.cache import CacheScales, MakeCache, RoundedCache, float_cache
from llama_runtime.manifest import Manifest


def stored_cache(folder: Path, manifest: Manifest) -> MakeCache:
    """Caches that hold what the bundle's do.

    Args:
        folder: The bundle.
        manifest: Its manifest.
    """
    if manifest.cache is None or manifest.cache.dtype != "int8":
        return float_cache
    graph = onnx.load(folder / manifest.model.path, load_external_data=False).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}

    def scales(name: str) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(arrays[name]).copy())[0, :, 0]  # [K, D]

    layers = [
        CacheScales(scales(KEY_SCALE.format(i=i)), scales(VALUE_SCALE.format(i=i)))
        for i in range(manifest.cache.num_hidden_layers)
    ]
    return lambda layer: RoundedCache(layers[layer])
