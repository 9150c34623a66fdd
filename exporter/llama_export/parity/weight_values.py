"""Every stored weight against the checkpoint's, streamed, read by our own eyes from the file."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from llama_export.checkpoint import Checkpoint, LazyTensor, StoredTensor, nonfinite
from llama_export.errors import BundleError
from llama_export.parity.quantized_tensor import QuantizedTensor, compare_quantized
from llama_export.parity.report import TensorDifference
from llama_export.parity.stored_weights import StoredWeight


def compare_weights(stored: Mapping[str, StoredWeight], checkpoint: Checkpoint) -> list[TensorDifference]:
    """Compare every weight with the checkpoint's, cast to the stored dtype, or within what its bits allow.

    Bytes that are the checkpoint's own (a hard link, at the same place) need no reading.

    Args:
        stored: The bundle's weights, by name.
        checkpoint: What they were made from.

    Returns:
        One entry for each tensor of the checkpoint.

    Raises:
        BundleError: A weight is missing.
    """
    missing = sorted(set(checkpoint.tensors) - set(stored))
    if missing:
        raise BundleError(f"the graph: initializer {missing[0]} is missing", "export again")
    return [_compare(stored[name], source) for name, source in checkpoint.tensors.items()]


def _compare(candidate: StoredWeight, source: LazyTensor) -> TensorDifference:
    values = math.prod(source.shape)
    if candidate.shape != source.shape:
        return TensorDifference(candidate.name, values, values, math.inf)
    if isinstance(candidate, QuantizedTensor):
        return compare_quantized(candidate, source)
    if isinstance(source, StoredTensor) and _same_bytes(candidate, source):
        return TensorDifference(candidate.name, values, 0, 0.0)
    differing, largest, begin = 0, 0.0, 0
    for want in source.pieces():
        got = candidate.rows(begin, begin + len(want))
        begin += len(want)
        differing += _count_differences(want, got)
        if want.dtype != got.dtype and got.dtype != torch.float32:
            largest = max(largest, float((got.float() - want.float()).abs().max()))
    return TensorDifference(candidate.name, values, differing, largest)


def _same_bytes(candidate: StoredTensor, source: StoredTensor) -> bool:
    same_place = (candidate.offset, candidate.nbytes, candidate.dtype) == (
        source.offset,
        source.nbytes,
        source.dtype,
    )
    return same_place and candidate.file.samefile(source.file)


def _count_differences(want: Tensor, got: Tensor) -> int:
    # int views: values that compare equal as floats (0 and -0) still differ as bytes.
    ints = torch.int32 if got.dtype == torch.float32 else torch.int16
    expected, stored = want.to(got.dtype).contiguous().view(ints), got.view(ints)
    differing = 0 if torch.equal(expected, stored) else int((expected != stored).count_nonzero())
    # What rounding made infinite is what the cast gives, and still not the checkpoint's value.
    overflowed = want.dtype != got.dtype and nonfinite(got)
    return max(differing, int((~torch.isfinite(got)).sum())) if overflowed else differing
