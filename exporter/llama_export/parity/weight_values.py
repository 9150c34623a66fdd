"""The lowest rung: every initializer's values against the checkpoint, read by our own eyes from the file."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from llama_export.checkpoint import Checkpoint, LazyTensor, StoredTensor
from llama_export.errors import BundleError
from llama_export.parity.report import Rung
from llama_runtime.manifest import Manifest

_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}


def compare_weights(folder: Path, manifest: Manifest, checkpoint: Checkpoint) -> Rung:
    """Compare every weight that the graph names with the checkpoint's, cast to the stored dtype.

    Bytes that are the checkpoint's own (a hard link, at the same place) need no reading.

    Returns:
        A rung whose measure is the number of values that differ.

    Raises:
        BundleError: A weight is missing, or not where the graph says.
    """
    graph = onnx.load(folder / manifest.model.path, load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    data_folder = folder / manifest.model.external_data_folder
    differing = values = 0
    for name, source in checkpoint.tensors.items():
        if name not in stored:
            raise BundleError(f"{manifest.model.path}: initializer {name} is missing", "export again")
        candidate = _stored_tensor(stored[name], data_folder)
        values += source.nbytes // source.dtype.itemsize
        differing += _count_differences(candidate, source)
    detail = f"values that differ from the checkpoint's, of {values:,} in {len(checkpoint.tensors)} tensors"
    return Rung("weights", differing, 0, detail)


def _stored_tensor(tensor: onnx.TensorProto, folder: Path) -> StoredTensor:
    place = {entry.key: entry.value for entry in tensor.external_data}
    path = (folder / place["location"]).resolve()
    return StoredTensor(
        tensor.name,
        _DTYPES[tensor.data_type],
        tuple(tensor.dims),
        path,
        int(place["offset"]),
        int(place["length"]),
    )


def _count_differences(candidate: StoredTensor, source: LazyTensor) -> int:
    if candidate.shape != source.shape:
        return source.nbytes // source.dtype.itemsize
    if isinstance(source, StoredTensor) and _same_bytes(candidate, source):
        return 0
    # int views: values that compare equal as floats (0 and -0) still differ as bytes.
    ints = torch.int32 if candidate.dtype == torch.float32 else torch.int16
    differing = begin = 0
    for values in source.pieces():
        want = values.to(candidate.dtype).contiguous().view(ints)
        got = candidate.rows(begin, begin + len(values)).view(ints)
        differing += int((want != got).count_nonzero())
        begin += len(values)
    return differing


def _same_bytes(candidate: StoredTensor, source: StoredTensor) -> bool:
    same_place = (candidate.offset, candidate.nbytes, candidate.dtype) == (
        source.offset,
        source.nbytes,
        source.dtype,
    )
    return same_place and candidate.file.samefile(source.file)
