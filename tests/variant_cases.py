"""Every variant on every attention path; those that differ from others in numbers alone are long tests."""

from __future__ import annotations

import pytest
from tiny_checkpoints import VARIANTS

from llama_export.model import ATTENTION_PATHS

# A graph costs seconds to trace. Linear's and yarn's are the default's with other numbers, so that one path
# of the first and two of the second show in every run what the others show in make test-all.
_ALIKE = {("linear", "eager"), ("linear", "sdpa"), ("yarn", "eager")}
VARIANT_CASES = [
    pytest.param((name, path), id=f"{name}-{path}", marks=[pytest.mark.long] * ((name, path) in _ALIKE))
    for name in VARIANTS
    for path in ATTENTION_PATHS
]
