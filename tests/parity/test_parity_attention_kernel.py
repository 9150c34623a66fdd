"""Our own GroupQueryAttention beside ONNX Runtime's: every form that our graphs have."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from kernel_choice import choose
from onnx import TensorProto, helper

from llama_runtime.kernels import LIBRARY

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="the kernels were not built: make kernels")


@pytest.fixture(autouse=True)
def _choice(monkeypatch):
    choose(monkeypatch)


@dataclass(frozen=True)
class Shape:
    """H query and K key-value heads of D values; B rows of T tokens behind P cached ones."""

    H: int = 8
    K: int = 2
    D: int = 64
    B: int = 1
    T: int = 1
    P: int = 150
    packed: bool = True
    rotary: bool = True
    bias: bool = True
    cache: str = ""  # the quantization of an int8 cache, or none


def graph(shape: Shape, extra: dict[str, Any], inputs: dict[int, str]) -> bytes:
    names = [
        "q",
        "k",
        "v",
        "past_k",
        "past_v",
        "seqlens_k",
        "total",
        "cos",
        "sin",
        "",
        "bias",
        "",
        "ks",
        "vs",
    ]
    left_out = {9, 11} - set(inputs) | ({1, 2} if shape.packed else set())
    left_out |= set() if shape.rotary else {7, 8}
    left_out |= set() if shape.bias else {10}
    left_out |= set() if shape.cache else {12, 13}
    names = ["" if i in left_out else inputs.get(i, name) for i, name in enumerate(names)]
    attributes = {"num_heads": shape.H, "kv_num_heads": shape.K, "do_rotary": int(shape.rotary)}
    if shape.cache:
        attributes |= {"kv_cache_bit_width": 8, "k_quant_type": shape.cache, "v_quant_type": shape.cache}
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        ["y", "present_k", "present_v"],
        domain="com.microsoft",
        **attributes | extra,
    )
    cache = TensorProto.INT8 if shape.cache else TensorProto.FLOAT
    types = {"past_k": cache, "past_v": cache, "seqlens_k": TensorProto.INT32, "total": TensorProto.INT32}
    types |= {"position_ids": TensorProto.INT64}
    graph_inputs = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None)
        for name in names
        if name
    ]
    outputs = [("y", TensorProto.FLOAT), ("present_k", cache), ("present_v", cache)]
    graph_outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_graph([node], "g", graph_inputs, graph_outputs)
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def opened(model: bytes, library: Path | None, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds_of(shape: Shape, lengths: np.ndarray, capacity: int, seed: int) -> dict[str, np.ndarray]:
    random, total = np.random.default_rng(seed), shape.P + shape.T
    B, T, K, D = shape.B, shape.T, shape.K, shape.D

    def normal(*axes: int) -> np.ndarray:
        return random.normal(size=axes).astype(np.float32)

    feeds = {"q": normal(B, T, (shape.H + 2 * K if shape.packed else shape.H) * D)}
    if not shape.packed:
        feeds |= {"k": normal(B, T, K * D), "v": normal(B, T, K * D)}
    for name in ("past_k", "past_v"):
        if shape.cache:
            feeds[name] = random.integers(-128, 128, (B, K, capacity, D)).astype(np.int8)
        else:
            feeds[name] = normal(B, K, capacity, D)
            for row, length in enumerate(lengths):
                feeds[name][row, :, length:] = np.nan
    feeds |= {"seqlens_k": (lengths - 1).astype(np.int32), "total": np.array(total, np.int32)}
    if shape.rotary:
        angles = np.outer(np.arange(total), 10000.0 ** (-np.arange(D // 2) / (D // 2)))
        feeds |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    if shape.bias:  # leading padding, as our graphs hide it
        lead = random.integers(0, lengths.min(), B)[:, None, None, None] // 2
        slots = np.broadcast_to(np.arange(total), (B, 1, T, total))
        feeds["bias"] = np.where(slots < lead, -1e9, 0).astype(np.float32)
    if shape.cache:
        axes = (1,) if shape.cache == "PER_TENSOR" else (1, K, 1, D)
        feeds |= {name: random.uniform(0.01, 0.03, axes).astype(np.float32) for name in ("ks", "vs")}
    return feeds


def run(
    session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray], in_place: bool
) -> list[np.ndarray]:
    """Context, present keys and present values."""
    feeds = {name: array.copy() for name, array in feeds.items()}
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    binding.bind_output("y", "cpu")
    for present, past in (("present_k", "past_k"), ("present_v", "past_v")):
        if in_place:
            array = feeds[past]
            binding.bind_output(present, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        else:
            binding.bind_output(present, "cpu")
    session.run_with_iobinding(binding)
    found = [value.numpy() for value in binding.get_outputs()]
    return [found[0], feeds["past_k"], feeds["past_v"]] if in_place else found


def compare(
    shape: Shape, *, in_place: bool = True, seed: int = 0, extra: dict[str, Any] | None = None
) -> None:
    total = shape.P + shape.T
    random = np.random.default_rng(seed)
    lengths = random.integers(shape.T if shape.P else 1, total + 1, shape.B)
    lengths[0] = total
    feeds = feeds_of(shape, lengths, total + 3 if in_place else shape.P, seed)
    model = graph(shape, extra or {}, {})
    wanted = run(opened(model, None), feeds, in_place)
    got = run(opened(model, LIBRARY, threads=2), feeds, in_place)
    limit = 1e-3 if shape.cache else 2e-5
    for row, length in enumerate(lengths):
        used = shape.T if shape.P else min(shape.T, length)  # what is behind is padding
        np.testing.assert_allclose(got[0][row, :used], wanted[0][row, :used], rtol=0, atol=limit)
        for mine, theirs in zip(got[1:], wanted[1:], strict=True):
            # A code on the border of two may round either way; a number may differ in its last bit.
            gap = np.abs(mine[row, :, :length].astype(np.float64) - theirs[row, :, :length])
            assert gap.max() <= (1 if shape.cache else 2e-6)
            assert (gap > 1e-5).mean() < 1e-3


STEPS = {
    "decode": (1, 1, 150),
    "prefill": (1, 70, 0),
    "chunk": (1, 37, 129),
    "batch": (3, 1, 140),
    "texts": (3, 40, 0),
}
FORMS = list(itertools.product([True, False], [True, False], [True, False]))


@pytest.mark.parametrize("cache", ["", "PER_TENSOR", "PER_CHANNEL"])
@pytest.mark.parametrize("step", STEPS)
def test_the_operator_is_onnx_runtimes(step, cache):
    B, T, P = STEPS[step]
    for i, (packed, rotary, bias) in enumerate(FORMS):
        H, K, D = [(8, 2, 64), (4, 4, 32), (6, 1, 80), (14, 2, 128)][i % 4]
        compare(Shape(H, K, D, B, T, P, packed, rotary, bias, cache), seed=i)


def test_a_cache_that_grows():
    compare(Shape(), in_place=False)
    compare(Shape(T=20), in_place=False)


def test_a_window_and_a_scale():
    for T, P in ((1, 200), (50, 150), (120, 0)):
        compare(Shape(T=T, P=P), extra={"local_window_size": 60})
        compare(Shape(T=T, P=P), extra={"scale": 0.2})


def test_threads_change_nothing():
    for T, P in ((1, 700), (90, 200)):
        shape = Shape(T=T, P=P)
        feeds = feeds_of(shape, np.array([P + T]), P + T, 1)
        alone, *others = (
            run(opened(graph(shape, {}, {}), LIBRARY, threads), feeds, True)[0] for threads in (1, 2, 3, 8)
        )
        assert all(np.array_equal(other, alone) for other in others)


@pytest.mark.parametrize(
    ("extra", "inputs", "what"),
    [
        ({"softcap": 30.0}, {}, "softcap is not supported"),
        ({"smooth_softmax": 1}, {}, "smooth_softmax is not supported"),
        ({"rotary_interleaved": 1}, {}, "rotary_interleaved other than 0 is not supported"),
        ({"causal": 0}, {}, "causal other than 1 is not supported"),
        ({"k_quant_type": "PER_TENSOR"}, {}, "k_quant_type PER_TENSOR is not supported with this cache"),
        ({}, {9: "position_ids"}, "position_ids are not supported"),
        ({}, {11: "head_sink"}, "head_sink is not supported"),
    ],
)
def test_what_it_does_not_compute_is_refused_when_the_session_is_made(extra, inputs, what):
    with pytest.raises(Exception, match=f"GroupQueryAttention: {what}"):
        opened(graph(Shape(), extra, inputs), LIBRARY)


@pytest.mark.parametrize("change", ["total", "seqlens_k", "cos", "bias"])
def test_lengths_that_cannot_be_are_refused(change):
    shape = Shape()
    feeds = feeds_of(shape, np.array([151]), 154, 1)
    wrong = {
        "total": np.array(0, np.int32),
        "seqlens_k": np.array([200], np.int32),
        "cos": feeds["cos"][:100],
        "bias": feeds["bias"][..., :100],
    }
    with pytest.raises(Exception, match="GroupQueryAttention: "):
        run(opened(graph(shape, {}, {}), LIBRARY), feeds | {change: wrong[change]}, True)
