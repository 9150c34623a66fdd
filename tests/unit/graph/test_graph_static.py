"""The graph of TensorRT engines, run in ONNX Runtime, computes what the eager model does."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.tensor_adapters
import pytest
import torch
from played_engine import PlayedEngine
from tiny_checkpoints import CONFIGS, DTYPES, NARROW_HEADS, VARIANTS, random_weights

from llama_export.graph import static_contract
from llama_export.graph.static_graph import build_static_graph
from llama_export.model import HEADS, GrowingCache, HeadConfig, LlamaForCausalLM, LlamaModel

CAPACITY, GARBAGE = 64, 1000.0
# Of the largest logit: float32 rounds in another order; float16 has 11 bits, and each of a few layers rounds.
LIMITS = {"float32": 1e-5, "float16": 1e-2}
CASES = [(name, "float32") for name in (*CONFIGS, *VARIANTS, "narrow")]
CASES += [("gqa", "float16"), ("mqa_llama3", "float16")]


def config_of(name):
    return NARROW_HEADS if name == "narrow" else (CONFIGS | VARIANTS)[name]


@cache
def serialized(config, dtype, capacity=CAPACITY):
    model = build_static_graph(config, dtype, capacity)
    for name, weight in random_weights(config, DTYPES[dtype]).items():
        model.graph.initializers[name].const_value = onnx_ir.tensor_adapters.TorchTensor(weight, name=name)
    return ir.to_proto(model).SerializeToString()


class Played:
    """An engine and the reference that it must equal, on weights rounded alike."""

    def __init__(self, name, dtype):
        self.config, self.dtype = config_of(name), dtype
        self.engine = PlayedEngine(serialized(self.config, dtype))
        self.engine.fill = GARBAGE
        self.reference = LlamaForCausalLM(self.config).eval()
        weights = random_weights(self.config, DTYPES[dtype])
        self.reference.load_state_dict({key: weight.float() for key, weight in weights.items()})

    def ids(self, B, T):
        return np.random.default_rng(B * 100 + T).integers(0, self.config.vocab_size, (B, T))

    def step(self, memory, ids, past, bucket, rope_length=0, first_row=0):
        """[B, T] ids behind each row's ``past`` -> [B, V]."""
        B, T = ids.shape
        past = np.broadcast_to(np.asarray(past), (B,)).astype(np.int64)
        feeds = {
            "input_ids": ids,
            "position_ids": past[:, None] + np.arange(T),
            "write_indices": past,
            "kv_bucket": np.array([bucket]),
        }
        if self.config.rope.depends_on_length:
            feeds["rope_length"] = np.array([rope_length])
        return self.engine.run(0, feeds, memory, first_row)["logits"]

    @torch.no_grad()
    def wanted(self, ids, **kwargs):
        return self.reference(torch.from_numpy(ids), **kwargs).numpy()

    def assert_close(self, got, want):
        assert got.shape == want.shape
        assert got.dtype == np.float32
        assert np.abs(got - want).max() <= LIMITS[self.dtype] * np.abs(want).max()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def played(request):
    return Played(*request.param)


@pytest.mark.parametrize(("B", "T", "bucket"), [(1, 1, 16), (2, 16, 16), (3, 17, 32), (1, 64, 64)])
def test_prefill_of_every_size_with_garbage_behind(played, B, T, bucket):
    ids = played.ids(B, T)
    memory = played.engine.allocate(B)
    played.assert_close(played.step(memory, ids, 0, bucket), played.wanted(ids)[:, -1])
    written = GrowingCache()
    played.wanted(ids, cache=written)
    for row in range(B):
        for found, keys in zip(memory.read_row(row, T)[::2], written.keys, strict=True):
            played.assert_close(found.astype(np.float32), keys[row].numpy())
    # Behind the last token nothing was written.
    assert all((tensor[:, :, T:] == GARBAGE).all() for tensor in memory.tensors)


@pytest.mark.parametrize("sizes", [(1, 6), (5, 2, 9), (16, 16, 1, 7)])
def test_chunks_equal_one_pass_in_the_smallest_bucket_and_in_the_largest(played, sizes):
    ids, wide, tight = played.ids(1, sum(sizes)), played.engine.allocate(1), played.engine.allocate(1)
    end = 0
    for size in sizes:
        chunk, begin = ids[:, end : end + size], end
        end += size
        bucket = next(n for n in (16, 32, 64) if n >= end)
        small = played.step(tight, chunk, begin, bucket, rope_length=sum(sizes))
        large = played.step(wide, chunk, begin, CAPACITY, rope_length=sum(sizes))
        want = played.wanted(ids[:, :end], rope_length=sum(sizes))[:, -1]
        played.assert_close(small, want)
        played.assert_close(large, want)


def test_ragged_rows_decode_together_and_leave_the_others_alone(played):
    lengths, steps = (9, 4, 1), 4
    ids = played.ids(len(lengths), 16)
    memory = played.engine.allocate(4)
    for row, length in enumerate(lengths):
        played.step(memory, ids[row : row + 1, :length], 0, 16, first_row=row + 1)
    past = np.array(lengths)
    caches = [GrowingCache() for _ in lengths]
    for row, length in enumerate(lengths):
        played.wanted(ids[row : row + 1, :length], cache=caches[row])
    for _ in range(steps):
        tokens = np.take_along_axis(ids, past[:, None], axis=1)
        # The row with the longest text decides on the bucket, as in a session.
        got = played.step(memory, tokens, past, 16, first_row=1)
        want = [played.wanted(tokens[row : row + 1], cache=caches[row])[0, -1] for row in range(3)]
        played.assert_close(got, np.stack(want))
        past += 1
    assert all((tensor[0] == GARBAGE).all() for tensor in memory.tensors)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("gqa", "float32"), ("gqa", "float16"), ("gqa", "bfloat16"), ("dynamic", "bfloat16")],
)
def test_the_graph_keeps_its_contract_in_every_dtype(name, dtype):
    config = config_of(name)
    model = onnx.load_from_string(serialized(config, dtype))
    onnx.checker.check_model(model, full_check=True)

    def described(values):
        types = [value.type.tensor_type for value in values]
        names = [onnx.TensorProto.DataType.Name(kind.elem_type).lower() for kind in types]
        shapes = [tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim) for kind in types]
        dtypes = ["float32" if name == "float" else name for name in names]
        return list(zip([value.name for value in values], dtypes, shapes, strict=True))

    specs = static_contract.inputs(config, dtype, CAPACITY), static_contract.outputs(config, dtype, CAPACITY)
    for values, wanted in zip((model.graph.input, model.graph.output), specs, strict=True):
        assert described(values) == [(spec.name, spec.dtype, spec.shape) for spec in wanted]
    found = {(node.domain, node.op_type) for node in model.graph.node}
    assert {domain for domain, _ in found} == {""}
    assert model.opset_import[0].version == static_contract.OPSET
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("Attention") == config.num_hidden_layers
    assert ops.count("TensorScatter") == 2 * config.num_hidden_layers
    # Every weight is stored as it is computed with: no Cast between it and its reader.
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    weights = {tensor.name for tensor in model.graph.initializer}
    assert not [node.name for node in casts if node.input[0] in weights]


HEAD_CONFIGS = {
    "feature-extraction": HeadConfig("feature-extraction"),
    "text-classification": HeadConfig("text-classification", labels=("a", "b", "c"), pad_token_id=0),
    "token-classification": HeadConfig("token-classification", labels=("a", "b"), bias=True),
    "question-answering": HeadConfig("question-answering"),
}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("task", HEADS)
def test_the_task_heads_of_padded_texts(task, dtype):
    config = dataclasses.replace(CONFIGS["gqa"], head=HEAD_CONFIGS[task])
    weights = {name: w.float() for name, w in random_weights(config, DTYPES[dtype]).items()}
    engine = PlayedEngine(serialized(config, dtype))
    body, head = LlamaModel(config).eval(), HEADS[task](config).eval()
    body.load_state_dict({k.removeprefix("model."): w for k, w in weights.items() if k.startswith("model.")})
    head.load_state_dict({name: weights[name] for name in config.head_shapes()})
    ids = np.random.default_rng(3).integers(1, config.vocab_size, (2, 9))
    mask = np.ones_like(ids)
    mask[1, 5:] = ids[1, 5:] = 0
    with torch.no_grad():
        tokens, seen = torch.from_numpy(ids), torch.from_numpy(mask)
        wanted = [value.numpy() for value in head(body(tokens, seen), tokens, seen)]
    found = engine.run(0, {"input_ids": ids, "attention_mask": mask})
    for spec, want in zip(static_contract.outputs(config, dtype, CAPACITY), wanted, strict=True):
        got = found[spec.name]
        assert got.dtype == np.float32
        shown = mask == 1 if "sequence_length" in spec.shape else np.ones(2, bool)
        assert np.abs(got[shown] - want[shown]).max() <= LIMITS[dtype] * np.abs(want[shown]).max()
