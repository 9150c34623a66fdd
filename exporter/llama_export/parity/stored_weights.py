"""The weights as the bundle stores them, found through its graph and read with our own reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor

from llama_export.checkpoint import StoredTensor
from llama_export.errors import BundleError
from llama_export.model import LlamaConfig
from llama_export.model.joined import PROJECTIONS
from llama_export.parity.quantized_tensor import QuantizedTensor
from llama_export.progress import byte_progress
from llama_export.quantize import Blocks
from llama_runtime.manifest import Manifest

StoredWeight = StoredTensor | QuantizedTensor

_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.UINT8: torch.uint8,
}
_CODES_INPUT = {"MatMulNBits": 1, "GatherBlockQuantized": 0}


def stored_weights(folder: Path, manifest: Manifest, config: LlamaConfig) -> dict[str, StoredWeight]:
    """Find every weight that the graphs keep outside of themselves, by the checkpoint's names.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        config: Says how large the weights are that the bundle has joined.

    Raises:
        BundleError: The graph cannot be read.
    """
    data_folder, shapes = folder / manifest.model.external_data_folder, config.tensor_shapes()
    found = dict[str, StoredWeight]()
    for name in filter(None, (manifest.embed_tokens, manifest.model.path)):
        try:
            graph = onnx.load(folder / name, load_external_data=False).graph
        except Exception as error:  # protobuf's own, which is no part of any interface
            raise BundleError(f"{name}: is not an ONNX graph ({error})", "export again") from None
        arrays = {t.name: _place(t, data_folder) for t in graph.initializer if t.external_data}
        quantized = {tensor.name: tensor for node in graph.node for tensor in _quantized(node, arrays)}
        for tensor in quantized.values():
            for array in (tensor.codes, tensor.scales, tensor.zero_points):
                arrays.pop(array.name if array else "", None)
        weights: list[StoredWeight] = [*arrays.values(), *quantized.values()]
        for weight in weights:
            found |= {part.name: part for part in _taken_apart(weight, shapes)}
    return found


def coarsest_blocks(weights: Iterable[StoredWeight]) -> str | None:
    """``int4`` where any weight is, else ``int8`` where any is; None where none is in blocks."""
    bits = [weight.blocks.bits for weight in weights if isinstance(weight, QuantizedTensor)]
    return f"int{min(bits)}" if bits else None


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


def _quantized(node: onnx.NodeProto, arrays: dict[str, StoredTensor]) -> Iterator[QuantizedTensor]:
    """The matrix that an operator reads in blocks."""
    if node.op_type not in _CODES_INPUT:
        return
    attributes = {entry.name: entry.i for entry in node.attribute}
    bits, size = attributes["bits"], attributes["block_size"]
    names = [*node.input, "", ""]
    codes = arrays[names[_CODES_INPUT[node.op_type]]]
    scales, zeros = arrays[names[2]], arrays.get(names[3])
    name = codes.name.removesuffix("_rows").removesuffix(f"_q{bits}")
    if "K" in attributes:
        columns = attributes["K"]
    else:  # a row of codes ends with its last value
        columns = codes.shape[1] * 8 // bits
        by_block = (codes.shape[0], columns // size, size * bits // 8)
        codes = StoredTensor(codes.name, codes.dtype, by_block, codes.file, codes.offset, codes.nbytes)
    shape = (codes.shape[0], columns)
    yield QuantizedTensor(name, shape, codes, scales, zeros, Blocks(bits, size, zeros is None))


def _taken_apart(weight: StoredWeight, shapes: dict[str, tuple[int, ...]]) -> Iterator[StoredWeight]:
    """The weights that one stands for: itself, or those that were joined."""
    module, _, kind = weight.name.rpartition(".")
    layer, _, whole = module.removeprefix("model.layers.").partition(".")
    if whole not in PROJECTIONS:
        yield weight
        return
    begin = 0
    for member in PROJECTIONS[whole]:
        name = f"model.layers.{layer}.{member}.{kind}"
        shape = shapes[name]
        if isinstance(weight, QuantizedTensor):
            parts = weight.codes, weight.scales, weight.zero_points
            yield QuantizedTensor(name, shape, *parts, weight.blocks, begin)
        else:
            nbytes = weight.nbytes // weight.shape[0] * shape[0]
            offset = weight.offset + weight.nbytes // weight.shape[0] * begin
            yield StoredTensor(name, weight.dtype, shape, weight.file, offset, nbytes)
        begin += shape[0]


@contextmanager
def shown(
    read: Callable[[str], Tensor], title: str, stored: Iterable[StoredWeight]
) -> Iterator[Callable[[str], Tensor]]:
    """The same reading of weights, with progress."""
    with byte_progress(title, sum(tensor.nbytes for tensor in stored)) as advance:

        def reading(name: str) -> Tensor:
            tensor = read(name)
            advance(tensor.nbytes)
            return tensor

        yield reading
