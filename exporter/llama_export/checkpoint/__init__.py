"""Stage 1: files on disk become a LlamaConfig and lazily read tensors.

``open_checkpoint`` reads the JSON files and the safetensors headers alone, and refuses whatever the
export could not honour; the weights stay on disk until ``StoredTensor.read`` asks for one of them.
"""

from __future__ import annotations

from llama_export.checkpoint.finite import nonfinite
from llama_export.checkpoint.folder import Checkpoint, open_checkpoint
from llama_export.checkpoint.tensor import StoredTensor

__all__ = ["Checkpoint", "StoredTensor", "nonfinite", "open_checkpoint"]
