"""The weights as the bundle stores them, found through its graph and read with our own reader."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from llama_export.checkpoint import StoredTensor
from llama_export.errors import BundleError
from llama_runtime.manifest import Manifest

_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}


def stored_weights(folder: Path, manifest: Manifest) -> dict[str, StoredTensor]:
    """Find every tensor that the graphs keep outside of themselves.

    Raises:
        BundleError: The graph cannot be read.
    """
    data_folder, found = folder / manifest.model.external_data_folder, dict[str, StoredTensor]()
    for name in filter(None, (manifest.embed_tokens, manifest.model.path)):
        try:
            graph = onnx.load(folder / name, load_external_data=False).graph
        except Exception as error:  # protobuf's own, which is no part of any interface
            raise BundleError(f"{name}: is not an ONNX graph ({error})", "export again") from None
        found |= {t.name: _place(t, data_folder) for t in graph.initializer if t.external_data}
    return found


def _place(tensor: onnx.TensorProto, folder: Path) -> StoredTensor:
    place = {entry.key: entry.value for entry in tensor.external_data}
    return StoredTensor(
        tensor.name,
        _DTYPES[tensor.data_type],
        tuple(tensor.dims),
        (folder / place["location"]).resolve(),
        int(place["offset"]),
        int(place["length"]),
    )
