"""Random Hugging Face checkpoints of real shapes, written tensor by tensor.

No two tensors are alike: exporters and runtimes share identical ones, which flatters every figure.
A float32 checkpoint holds the values of the bfloat16 one of the same shape, so that all exports of
either compute the same tokens.
"""

from __future__ import annotations

import json
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizer_files import write_tokenizer

Dtype = Literal["bfloat16", "float32"]
ITEM_BYTES: dict[Dtype, int] = {"bfloat16": 2, "float32": 4}
SAFETENSORS_NAME: dict[Dtype, str] = {"bfloat16": "BF16", "float32": "F32"}

# Uniform in +-SPREAD has the standard deviation 0.02 of a freshly initialised LLaMA.
SPREAD = 0.02 * 3**0.5
CHUNK = 1 << 23  # numbers drawn at a time: 32 MiB
SEED = 7


@dataclass(frozen=True)
class Shape:
    """A LLaMA's architecture, under ``config.json``'s names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape, in the order of the file."""
        hidden, mlp = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (mlp, hidden),
            "mlp.up_proj": (mlp, hidden),
            "mlp.down_proj": (hidden, mlp),
        }
        tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for i in range(self.num_hidden_layers):
            tensors |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        return tensors | {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocab_size, hidden)}

    def config(self, dtype: Dtype) -> dict[str, object]:
        """The checkpoint's ``config.json``."""
        return asdict(self) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "torch_dtype": dtype,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        }


SHAPES = {
    # For trying the benchmarks themselves; its figures mean nothing.
    "tiny": Shape(1024, 64, 160, 3, 4, 2, 16, 2048),
    "TinyLlama-1.1B": Shape(32000, 2048, 5632, 22, 32, 4, 64, 2048),
    "Llama-2-7B": Shape(32000, 4096, 11008, 32, 32, 32, 128, 4096),
    "Llama-2-70B": Shape(32000, 8192, 28672, 80, 64, 8, 128, 4096),
}


def make_checkpoint(folder: Path, shape: Shape, dtype: Dtype, residual: float = 1.0) -> Path:
    """Write a checkpoint with tokenizer, unless the folder already holds this one.

    Args:
        folder: Made when absent.
        shape: Its architecture.
        dtype: How its weights are stored.
        residual: Factor of what a layer adds. With little, a token follows from the one before it alone, and
            greedy text runs into a circle of some hundred tokens.

    Returns:
        The folder.
    """
    config = folder / "config.json"
    wanted = json.dumps(shape.config(dtype), indent=2)
    if config.is_file() and config.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_weights(folder / "model.safetensors", shape, dtype, residual)
    write_tokenizer(folder, shape.vocab_size)
    config.write_text(wanted)  # last: it marks the folder as complete
    return folder


def write_weights(path: Path, shape: Shape, dtype: Dtype, residual: float = 1.0) -> None:
    """Write one safetensors file, two tensors in memory at a time and neither as a whole."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for name, dims in shape.tensors().items():
        begins[name], end = end, end + ITEM_BYTES[dtype] * int(np.prod(dims))
        entry = {"dtype": SAFETENSORS_NAME[dtype], "shape": dims, "data_offsets": [begins[name], end]}
        header[name] = entry
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(head)) + head)
        stream.truncate(8 + len(head) + end)

    def fill(index: int, name: str, dims: tuple[int, ...]) -> None:
        spread = SPREAD * (residual if "o_proj" in name or "down_proj" in name else 1)
        rng = np.random.Generator(np.random.SFC64([SEED, index]))
        with path.open("r+b") as stream:
            stream.seek(8 + len(head) + begins[name])
            count = int(np.prod(dims))
            for start in range(0, count, CHUNK):
                values = rng.random(min(CHUNK, count - start), np.float32)
                values -= 0.5
                values *= 2 * spread
                if len(dims) == 1:  # a norm's weight
                    values += 1
                stream.write(encode(values, dtype).data)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(fill, i, *item) for i, item in enumerate(shape.tensors().items())]:
            done.result()


def encode(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Cut float32 to bfloat16's bits, stored as ``dtype``."""
    bits = values.view(np.uint32)
    if dtype == "bfloat16":
        return (bits >> 16).astype(np.uint16)
    return bits & np.uint32(0xFFFF0000)
