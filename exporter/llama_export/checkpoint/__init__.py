"""Stage 1: files on disk become a LlamaConfig and lazily read tensors.

``open_checkpoint`` reads the JSON files and the safetensors headers alone, and refuses whatever the
export could not honour; the weights stay on disk until one of them is read.
"""

from __future__ import annotations

from llama_export.checkpoint.adapter import merge_adapter, open_merged
from llama_export.checkpoint.finite import nonfinite
from llama_export.checkpoint.folder import Checkpoint, open_checkpoint
from llama_export.checkpoint.soft_prompt import SoftPrompt
from llama_export.checkpoint.tensor import ComputedTensor, LazyTensor, Read, StoredTensor

__all__ = [
    "Checkpoint",
    "ComputedTensor",
    "LazyTensor",
    "Read",
    "SoftPrompt",
    "StoredTensor",
    "merge_adapter",
    "nonfinite",
    "open_checkpoint",
    "open_merged",
]
