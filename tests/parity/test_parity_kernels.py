"""Bundles with our own CPU kernels: the same numbers as without, and no bundle that needs them."""

from __future__ import annotations

import ctypes.util
import itertools
import logging
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from kernel_choice import choose
from onnx import TensorProto, helper, numpy_helper
from tiny_checkpoints import CONFIGS, VARIANTS, write_checkpoint

from llama_export import pipeline
from llama_export.graph.passes import widening
from llama_export.parity import verify
from llama_export.parity.evidence import RUNTIME
from llama_export.parity.tolerances import TOLERANCES
from llama_export.recipe import Recipe
from llama_runtime import kernels
from llama_runtime.bench import bench
from llama_runtime.errors import SelftestError
from llama_runtime.kernels import LIBRARY, VARIABLE, Kernels, find_kernels
from llama_runtime.opening import open_session
from llama_runtime.selftest import selftest
from llama_runtime.session import Session

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="the kernels were not built: make kernels")
LEVELS = ("amx", "avx512", "avxvnni", "avx2", "neon", "scalar")


@pytest.fixture(autouse=True)
def _choice(monkeypatch):
    choose(monkeypatch)


@pytest.fixture(scope="module", params=["int4", "int8", "int4 asymmetric", "bfloat16", "float16"])
def made(request, tmp_path_factory):
    """A verified bundle, and its checkpoint."""
    root = tmp_path_factory.mktemp("kernels")
    source = write_checkpoint(root / "source", CONFIGS["gqa"])
    precision, _, asymmetric = request.param.partition(" ")
    options = {} if "float" in precision else {"block_size": 32, "asymmetric": bool(asymmetric)}
    recipe = Recipe(precision=precision, weights="copy", **options)
    with pytest.MonkeyPatch.context() as patch:
        choose(patch)
        return pipeline.export(source, root / "bundle", recipe=recipe), source


def session_of(made, **options) -> Session:
    return open_session(made[0].output, made[0].manifest, threads=1, **options)


def logits(session: Session, *, decode: int = 20) -> np.ndarray:
    """[T + n, V]: a prompt in two chunks, then single tokens."""
    ids = np.random.default_rng(3).integers(0, session.manifest.limits.vocab_size, (1, 50 + decode))
    cache = session.new_cache(capacity=ids.shape[1])
    found = [session.prefill(ids[:, :50], cache, all_logits=True, chunk_tokens=29)[0]]
    found += [session.decode(ids[:, 50 + i], cache) for i in range(decode)]
    return np.concatenate(found)


def test_a_bundle_computes_the_same_with_and_without(made):
    fast, plain = session_of(made), session_of(made, own_kernels=False)
    assert fast.kernels is not None and fast.kernels.level in LEVELS
    assert plain.kernels is None
    got, wanted = logits(fast), logits(plain)
    assert not np.array_equal(got, wanted)  # other operators did compute
    difference, scale = np.abs(got - wanted).max(axis=-1), np.abs(wanted).max()
    # A sum in another order now and then rounds an activation to the next code, which the cache then keeps.
    assert difference[0] <= 1e-5 * scale
    precision = made[0].manifest.precision
    limit = 1e-5 if "float" in precision else TOLERANCES[precision, RUNTIME]["logits"].limit
    assert difference.max() <= limit * scale


def test_rows_with_a_past_are_read_together_and_each_as_alone(made):
    prompts = np.random.default_rng(5).integers(0, 100, (3, 40))

    def read(session: Session, rows: np.ndarray) -> tuple[np.ndarray, int]:
        """[B, 40, V], and how many rows a run had."""
        cache = session.new_cache(capacity=40, rows=len(rows))
        found = [session.prefill(rows[:, :7], cache, all_logits=True)]
        found.append(session.prefill(rows[:, 7:], cache, all_logits=True, chunk_tokens=31))
        return np.concatenate(found, axis=1), cache.step.shape.rows

    fast = session_of(made)
    together, rows = read(fast, prompts)
    assert rows == 3
    assert np.array_equal(together, np.concatenate([read(fast, row[None])[0] for row in prompts]))
    assert read(session_of(made, own_kernels=False), prompts)[1] == 1


def test_every_level_gives_the_same_bits(made, monkeypatch):
    found = {}
    for level in LEVELS:
        monkeypatch.setenv(VARIABLE, level)
        session = session_of(made)
        if session.kernels is not None:
            assert session.kernels.level == level
            found[level] = logits(session)
    assert "scalar" in found and len(found) > 1
    assert all(np.array_equal(got, found["scalar"]) for got in found.values())


def test_the_ladder_has_a_rung_for_them(made):
    bundle, source = made
    rungs = {rung.name: rung for rung in bundle.report.rungs}
    assert rungs["own kernels"].passed
    assert "instructions" in rungs["own kernels"].detail
    assert verify(bundle.output, source, quick=True).passed


def test_the_ladder_is_silent_where_there_are_none(made, monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    report = verify(made[0].output, made[1], quick=True)
    assert report.passed
    assert "own kernels" not in [rung.name for rung in report.rungs]


def test_selftest_replays_with_and_without(made, monkeypatch):
    opened = []

    def opening(*args, **options):
        opened.append(open_session(*args, **options))
        return opened[-1]

    monkeypatch.setattr("llama_runtime.tasks.opening.open_session", opening)
    # The package's own name for the function hides the module from a dotted path.
    monkeypatch.setattr(sys.modules["llama_runtime.selftest"], "open_session", opening)
    report = selftest(made[0].output)
    assert report.ok
    assert report.kernels == opened[0].kernels.level
    assert [session.kernels is None for session in opened] == [False, True]


def test_selftest_notices_kernels_that_compute_something_else(made, monkeypatch):
    run = Session.decode

    def wrong(self, *args, **options):
        return run(self, *args, **options) + (0 if self.kernels is None else 100)

    monkeypatch.setattr(Session, "decode", wrong)
    with pytest.raises(SelftestError, match="logit is"):
        selftest(made[0].output).check()


def test_bench_says_which_are_used(made, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    counts = {"prompt_tokens": 5, "new_tokens": 4, "prefill_tokens": 9, "repeats": 1}
    report = bench(made[0].output, threads=1, profile=True, **counts)
    assert report.kernels == session_of(made).kernels.level
    product = "WidenGemm" if "float" in report.precision else "MatMulNBits"
    assert report.profile[product] > 0
    monkeypatch.setenv(VARIABLE, "off")
    assert bench(made[0].output, threads=1, **counts).kernels is None


def test_off_runs_without(made, monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    assert session_of(made).kernels is None


def test_a_bundle_that_computes_in_float16_runs_without(caplog, tmp_path):
    source = write_checkpoint(tmp_path / "source", CONFIGS["gqa"])
    made = pipeline.export(source, tmp_path / "bundle", recipe=Recipe(compute="float16"))
    session = open_session(made.output, made.manifest, threads=1)
    assert session.kernels is None
    assert "llama_runtime" not in [record.name for record in caplog.records]


def one_line(caplog) -> str:
    (record,) = caplog.records
    assert record.name == "llama_runtime" and record.levelno == logging.WARNING
    message = record.getMessage()
    assert "\n" not in message and message.endswith("ONNX Runtime's own operators are used")
    return message


def test_an_unknown_level_is_one_line_and_the_bundle_runs(made, monkeypatch, caplog):
    monkeypatch.setenv(VARIABLE, "abacus")
    session = session_of(made)
    assert session.kernels is None and np.isfinite(logits(session)).all()
    assert f"{VARIABLE} is abacus, which the kernels or this processor do not have" in one_line(caplog)


def test_a_processor_for_which_they_are_not_faster_runs_without(made, monkeypatch, caplog):
    class Library:
        llama_kernels_version = staticmethod(lambda: kernels.VERSION)

        @staticmethod
        def llama_kernels_level() -> None:
            return None

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(kernels.ctypes, "CDLL", lambda path: Library)
    assert find_kernels() is None and not caplog.records


def test_a_missing_library_says_nothing_unless_it_is_asked_for(made, monkeypatch, caplog, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "libllama_kernels.so")
    assert session_of(made).kernels is None and not caplog.records
    monkeypatch.setenv(VARIABLE, "scalar")
    assert session_of(made).kernels is None
    assert "but the kernels were not built (make kernels)" in one_line(caplog)


def test_a_broken_library_is_one_line_and_the_bundle_runs(made, monkeypatch, caplog, tmp_path):
    broken = tmp_path / "libllama_kernels.so"
    broken.write_bytes(b"\x7fELF" + bytes(200))
    monkeypatch.setattr(kernels, "LIBRARY", broken)
    session = session_of(made)
    assert session.kernels is None and np.isfinite(logits(session)).all()
    assert "not a library of kernels for this machine" in one_line(caplog)


def test_another_library_is_one_line(made, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "LIBRARY", Path(onnxruntime.capi.onnxruntime_pybind11_state.__file__))
    assert session_of(made).kernels is None
    assert "not a library of kernels for this machine" in one_line(caplog)


def test_another_version_is_one_line(made, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "VERSION", kernels.VERSION + 1)
    assert session_of(made).kernels is None
    assert f"version {kernels.VERSION - 1} of the kernels, this runtime uses {kernels.VERSION}" in one_line(
        caplog
    )


def test_a_library_that_onnx_runtime_refuses_is_one_line(made, monkeypatch, caplog):
    libc = Path(ctypes.util.find_library("c") or "libc.so.6")
    monkeypatch.setattr("llama_runtime.loading.kernels_for", lambda manifest: Kernels(libc, "scalar"))
    session = session_of(made)
    assert session.kernels is None and np.isfinite(logits(session)).all()
    assert "ONNX Runtime refuses it" in one_line(caplog)


def test_a_graph_that_they_cannot_compute_is_one_line(made, caplog, tmp_path):
    bundle, _ = made
    path = bundle.output / bundle.manifest.model.path
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    node.attribute.append(helper.make_attribute("softcap", 50.0))
    (tmp_path / "onnx").mkdir()
    (tmp_path / bundle.manifest.model.path).write_bytes(model.SerializeToString())
    for file in path.parent.glob("*_data"):
        (tmp_path / "onnx" / file.name).hardlink_to(file)
    session = open_session(tmp_path, bundle.manifest, threads=1)
    assert session.kernels is None
    assert "softcap" in one_line(caplog)


def product(
    shape, *, bits, block, N, K, zero_points=False, bias=False, library=None, threads=1
) -> np.ndarray:
    """One MatMulNBits over random weights, the same for the same arguments."""
    random, blocks = np.random.default_rng(N * K), -(-K // block)
    scales = random.uniform(0.005, 0.015, (N, blocks)).astype(np.float32)
    arrays = {"q": random.integers(0, 256, (N, blocks, block * bits // 8), np.uint8), "s": scales}
    if zero_points:
        arrays["z"] = random.integers(0, 256, (N, -(-blocks * bits // 8)), np.uint8)
    if bias:
        arrays["b"] = random.normal(size=N).astype(np.float32)
    inputs = ["x", "q", "s", "z" if zero_points else "", "", "b" if bias else ""]
    attributes = {"bits": bits, "block_size": block, "N": N, "K": K, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **attributes)
    axes = [f"d{i}" for i in range(len(shape))]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [*axes, K])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [*axes, N])
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], initializers), opset_imports=opsets, ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    found: np.ndarray = session.run(None, {"x": random.normal(size=(*shape, K)).astype(np.float32)})[0]
    return found


OPERATORS = list(itertools.product([4, 8], [32, 64, 128], [False, True]))


@pytest.mark.parametrize(("bits", "block", "zero_points"), OPERATORS)
def test_the_operator_is_onnx_runtimes(bits, block, zero_points):
    for shape, N, K, bias in [((1,), 64, 256, False), ((2, 3), 37, 100, True), ((30,), 130, 33, False)]:
        case = {"bits": bits, "block": block, "N": N, "K": K, "zero_points": zero_points, "bias": bias}
        wanted, got = product(shape, **case), product(shape, **case, library=LIBRARY)
        assert got.shape == (*shape, N)
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_threads_of_onnx_runtime_change_nothing():
    case = {"bits": 4, "block": 32, "N": 1000, "K": 640, "library": LIBRARY}
    for rows in (1, 40):
        alone = product((rows,), **case)
        for threads in (2, 3, 8):
            assert np.array_equal(product((rows,), **case, threads=threads), alone)


def test_no_rows_are_no_rows():
    assert product((0,), bits=4, block=32, N=48, K=64, library=LIBRARY).shape == (0, 48)


@pytest.mark.parametrize("dtype", [TensorProto.BFLOAT16, TensorProto.FLOAT16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_with_16_bit_weights_is_what_its_function_computes(dtype, bias):
    """The function with the operator, and with its body."""
    shape = ("rows", 37), (53, 37)
    random = np.random.default_rng(1)
    function = ir.to_proto(widening.function(21))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(widening.DOMAIN, 1)]
    weights = helper.make_tensor("b", dtype, shape[1], random.normal(size=53 * 37))
    arrays = [weights, numpy_helper.from_array(random.normal(size=53).astype(np.float32), "c")]
    node = helper.make_node(
        widening.NAME, ["a", "b", "c"] if bias else ["a", "b"], ["y"], domain=widening.DOMAIN
    )
    graph = helper.make_graph(
        [node], "product", [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape[0])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("rows", 53))], arrays[: 1 + bias],
    )  # fmt: skip
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    found = {}
    for library in (None, LIBRARY):
        options = onnxruntime.SessionOptions()
        if library is not None:
            options.register_custom_ops_library(str(library))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        for rows in (0, 1, 3, 9):
            a = np.random.default_rng(rows).normal(size=(rows, 37)).astype(np.float32)
            found[library, rows] = session.run(["y"], {"a": a})[0]
    for rows in (0, 1, 3, 9):
        plain, own = found[None, rows], found[LIBRARY, rows]
        assert own.shape == (rows, 53)
        np.testing.assert_allclose(own, plain, atol=1e-5)
    assert not np.array_equal(found[None, 9], found[LIBRARY, 9])  # another operator did compute


@pytest.mark.parametrize("name", ["gqa", "mqa_llama3", "yarn", "linear"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4"])
def test_a_token_is_the_same_read_alone_or_with_others(tmp_path, name, precision):
    """By the bit, through the whole graph: what prompt lookup rests on."""
    source = write_checkpoint(tmp_path / "source", (CONFIGS | VARIANTS)[name])
    recipe = Recipe(precision=precision, weights="copy", verify=False)
    bundle = pipeline.export(source, tmp_path / "bundle", recipe=recipe)
    session = open_session(bundle.output, bundle.manifest, threads=2)
    ids = np.random.default_rng(1).integers(0, session.manifest.limits.vocab_size, (1, 40))
    alone, together = session.new_cache(capacity=40), session.new_cache(capacity=40)
    wanted = [session.prefill(ids[:, :20], alone, all_logits=True)[0]]
    wanted += [session.decode(ids[:, i], alone) for i in range(20, 40)]
    got = [session.prefill(ids[:, :20], together, all_logits=True)[0]]
    for first, end in ((20, 23), (23, 24), (24, 33), (33, 40)):
        got.append(session.prefill(ids[:, first:end], together, all_logits=True)[0])
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(wanted))
    assert all(map(np.array_equal, together.tensors, alone.tensors))
