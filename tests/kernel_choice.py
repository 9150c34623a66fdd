"""Which of our own kernels' instructions a test runs with."""

from __future__ import annotations

import pytest

from llama_runtime.kernels import VARIABLE, find_kernels


def choose(patch: pytest.MonkeyPatch) -> None:
    """What is used by default; on a processor for which that is nothing, the reference."""
    patch.delenv(VARIABLE, raising=False)
    if find_kernels() is None:
        patch.setenv(VARIABLE, "scalar")
