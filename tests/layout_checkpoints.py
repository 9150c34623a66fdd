"""One set of weights in every layout that people have: Meta's shards, pickles, Flax.

Written with torch and msgpack alone, from what those programs' own code does; nothing of ours takes part.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import torch
from tiny_checkpoints import CONFIGS, DTYPES, random_weights, raw_config, write_checkpoint
from torch import Tensor

from llama_export.model import LlamaConfig, RopeConfig

Weights = dict[str, Tensor]

# hidden_size is heads x head_dim, as Meta's code has it, and the width of the MLP follows from multiple_of.
META = LlamaConfig(
    vocab_size=132,
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
)
# Only a head_dim of 16 and its multiples goes through GroupQueryAttention.
META_FLASH = dataclasses.replace(
    META, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16
)
META_LLAMA3 = dataclasses.replace(
    META_FLASH,
    max_position_embeddings=131072,
    rope=RopeConfig("llama3", 500000.0, 8.0, 1.0, 4.0, 8192),
)
PARAMS = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 16, "norm_eps": 1e-5}
PARAMS_LLAMA3 = PARAMS | {"rope_theta": 500000.0, "use_scaled_rope": True, "rope_scaling_factor": 8.0}

_META_NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
}


def meta_state(weights: Weights, head_dim: int) -> Weights:
    """Hugging Face's names and rotary order -> Meta's, the whole model in one."""
    state = {}
    for name, value in weights.items():
        meta = name.removeprefix("model.")
        for theirs, metas in _META_NAMES.items():
            meta = meta.replace(theirs, metas)
        if meta.endswith(("wq.weight", "wk.weight")):
            value = interleave(value, head_dim)
        state[meta] = value
    return state


def interleave(value: Tensor, head_dim: int) -> Tensor:
    """Rows i and i + D / 2 of each head become neighbours; written as indices, unlike what is tested."""
    order = [
        head * head_dim + member * head_dim // 2 + pair
        for head in range(len(value) // head_dim)
        for pair in range(head_dim // 2)
        for member in range(2)
    ]
    return value[order]


def meta_shards(state: Weights, count: int, *, embedding_by_rows: bool) -> list[Weights]:
    """Cut as fairscale's parallel layers do: outputs by rows, inputs by columns, norms in all."""
    shards: list[Weights] = [{} for _ in range(count)]
    for name, value in state.items():
        by_columns = name.endswith(("wo.weight", "w2.weight"))
        by_columns |= name.startswith("tok_embeddings") and not embedding_by_rows
        whole = value.ndim == 1
        parts = [value] * count if whole else list(value.chunk(count, dim=int(by_columns)))
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.contiguous()
    return shards


def in_one_storage(state: Weights) -> Weights:
    """The same tensors, all of them views of one storage, as Meta's first release has them."""
    state = dict(state)
    views, begin = {"rope.freqs": state.pop("rope.freqs")}, 0
    flat = torch.cat([value.flatten() for value in state.values()])
    for name, value in state.items():
        views[name] = flat[begin : begin + value.numel()].view(value.shape)
        begin += value.numel()
    return views


def write_meta(
    folder: Path,
    config: LlamaConfig,
    params: dict[str, Any],
    dtype: str = "float32",
    *,
    weights: Weights | None = None,
    shards: int = 1,
    embedding_by_rows: bool = False,
    change: Callable[[Weights], Weights] = lambda state: state,
) -> Path:
    """Write a folder as Meta distributes it; ``change`` has the last word on each shard."""
    folder.mkdir(parents=True)
    weights = random_weights(config, DTYPES[dtype]) if weights is None else weights
    state = meta_state(weights, config.head_dim)
    for index, shard in enumerate(meta_shards(state, shards, embedding_by_rows=embedding_by_rows)):
        shard["rope.freqs"] = torch.ones(config.head_dim // 2)
        torch.save(change(shard), folder / f"consolidated.{index:02}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def write_pickles(
    folder: Path,
    config: LlamaConfig,
    dtype: str = "float32",
    *,
    shards: int = 1,
    weights: Weights | None = None,
    zipped: bool = True,
    **extra: Any,
) -> Path:
    """Write a folder as transformers did before safetensors, rope's tables included."""
    folder.mkdir(parents=True)
    weights = dict(random_weights(config, DTYPES[dtype]) if weights is None else weights)
    for layer in range(config.num_hidden_layers):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(config.head_dim // 2)
    (folder / "config.json").write_text(json.dumps(raw_config(config, dtype, **extra)))
    names = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    weight_map = {name: names[i % shards] for i, name in enumerate(weights)}
    for file in names:
        state = {name: value for name, value in weights.items() if weight_map[name] == file}
        path = folder / (file if shards > 1 else "pytorch_model.bin")
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def flax_names(weights: Weights) -> Weights:
    """``model.layers.0.mlp.up_proj.weight`` -> ``model/layers/0/mlp/up_proj/kernel``, transposed."""
    flax = {}
    for name, value in weights.items():
        path = name.removesuffix(".weight").replace(".", "/")
        if "embed_tokens" in name:
            flax[path + "/embedding"] = value
        elif value.ndim == 2:
            flax[path + "/kernel"] = value.T
        else:
            flax[path + "/weight"] = value
    return flax


def flax_array(value: Tensor) -> msgpack.ExtType:
    """An array as ``flax.serialization`` packs it: shape, NumPy's name of the dtype, bytes in C order."""
    data = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    name = str(value.dtype).removeprefix("torch.")
    return msgpack.ExtType(1, msgpack.packb((list(value.shape), name, data), use_bin_type=True))


def flax_chunked(value: Tensor, chunk_values: int) -> dict[str, Any]:
    """What Flax makes of an array that is over its limit of 1 GiB, here with another limit."""
    chunks = value.contiguous().flatten().split(chunk_values)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(value.shape)},
        "chunks": {str(i): flax_array(chunk) for i, chunk in enumerate(chunks)},
    }


def flax_bytes(flat: dict[str, Tensor], *, chunk_values: int | None = None) -> bytes:
    """Nested maps of arrays, chunked where they are longer than ``chunk_values``."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        chunked = chunk_values is not None and value.numel() > chunk_values
        node[last] = flax_chunked(value, chunk_values or 1) if chunked else flax_array(value)
    return msgpack.packb(tree, use_bin_type=True)


def write_flax(
    folder: Path,
    config: LlamaConfig,
    dtype: str = "float32",
    *,
    shards: int = 1,
    weights: Weights | None = None,
    chunk_values: int | None = None,
    **extra: Any,
) -> Path:
    """Write a folder as FlaxLlamaForCausalLM.save_pretrained does."""
    folder.mkdir(parents=True)
    flat = flax_names(random_weights(config, DTYPES[dtype]) if weights is None else weights)
    (folder / "config.json").write_text(json.dumps(raw_config(config, dtype, **extra)))
    if shards == 1:
        (folder / "flax_model.msgpack").write_bytes(flax_bytes(flat, chunk_values=chunk_values))
        return folder
    names = [f"flax_model-{i + 1:05}-of-{shards:05}.msgpack" for i in range(shards)]
    weight_map = {name: names[i % shards] for i, name in enumerate(flat)}
    for file in names:
        inside = {name: value for name, value in flat.items() if weight_map[name] == file}
        (folder / file).write_bytes(flax_bytes(inside, chunk_values=chunk_values))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps(index))
    return folder


def without_prefix(weights: Weights) -> Weights:
    """As LlamaModel saves them: no ``model.`` in front, no head."""
    base = {re.sub(r"^model\.", "", name): value for name, value in weights.items()}
    return {name: value for name, value in base.items() if name != "lm_head.weight"}


# One config that every layout can hold, with the writer of each layout and what it is called.
FLAT = CONFIGS["gqa"]
LAYOUTS: dict[str, tuple[LlamaConfig, Callable[..., Path]]] = {
    "safetensors": (FLAT, lambda folder, **kw: write_checkpoint(folder, FLAT, **kw)),
    "pickle": (FLAT, lambda folder, **kw: write_pickles(folder, FLAT, **kw)),
    "pickles": (FLAT, lambda folder, **kw: write_pickles(folder, FLAT, shards=3, **kw)),
    "flax": (FLAT, lambda folder, **kw: write_flax(folder, FLAT, **kw)),
    "flax chunks": (FLAT, lambda folder, **kw: write_flax(folder, FLAT, shards=2, chunk_values=999, **kw)),
    "meta 1 shard": (META_FLASH, lambda folder, **kw: write_meta(folder, META_FLASH, PARAMS, **kw)),
    "meta 2 shards": (
        META_FLASH,
        lambda folder, **kw: write_meta(folder, META_FLASH, PARAMS, shards=2, **kw),
    ),
    "meta llama 3": (
        META_LLAMA3,
        lambda folder, **kw: write_meta(
            folder, META_LLAMA3, PARAMS_LLAMA3, shards=2, embedding_by_rows=True, **kw
        ),
    ),
    "meta one storage": (
        META_FLASH,
        lambda folder, **kw: write_meta(folder, META_FLASH, PARAMS, shards=2, change=in_one_storage, **kw),
    ),
}
