"""The PyTorch LLaMA: the only place where the maths is written.

Shapes use one legend of letters throughout:

    B  rows of a batch            H  query heads
    T  new tokens in this step    K  key and value heads; H is a multiple of K
    P  past tokens in the cache   D  head_dim
    S  P + T, all tokens          V  vocabulary
    N  B * T, tokens of a step flattened for the matrix products

Query t of T stands at slot P + t: the causal diagonal is lower-right. A slot is a place in the cache; a
position is what rotary embedding sees. They differ only in rows that are padded.
"""

from __future__ import annotations

from llama_export.model.attention import ATTENTION_PATHS
from llama_export.model.cache import GrowingCache, KVCache, StaticCache
from llama_export.model.config import TASKS, HeadConfig, LlamaConfig, RopeConfig, Task
from llama_export.model.heads import HEADS
from llama_export.model.llama import LlamaForCausalLM, LlamaModel
from llama_export.model.step import Step, make_step

__all__ = [
    "ATTENTION_PATHS",
    "HEADS",
    "TASKS",
    "GrowingCache",
    "HeadConfig",
    "KVCache",
    "LlamaConfig",
    "LlamaForCausalLM",
    "LlamaModel",
    "RopeConfig",
    "StaticCache",
    "Step",
    "Task",
    "make_step",
]
