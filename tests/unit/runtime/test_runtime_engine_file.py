"""The sidecar of an engine: round trip, tampering, and where an engine may not run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys

import pytest

from llama_runtime.cuda import Cuda, compute_capability, open_cuda
from llama_runtime.engine_file import (
    EngineFile,
    Profile,
    check_runs_here,
    engine_names,
    read_engine_file,
    read_plan,
)
from llama_runtime.errors import EngineError, MissingExtraError
from llama_runtime.interface import TensorSpec
from llama_runtime.manifest import FileEntry

PLAN = b"a plan of some bytes"
CACHE = ("batch_size", 2, 64, 16)
FILE = EngineFile(
    task="text-generation",
    product="tensorrt-rtx",
    product_version="1.7.1.116",
    compute_capabilities=("8.6", "8.9"),
    precision="bf16",
    dtype="bfloat16",
    max_seq=64,
    prefill_chunk=32,
    max_batch=2,
    buckets=(16, 64),
    profiles=(Profile((1, 2, 2), (1, 1, 1), (16, 16, 16)), Profile((1, 2, 2), (1, 1, 1), (64, 64, 64)),
              Profile((1, 1, 1), (1, 32, 32), (16, 16, 64))),
    inputs=(TensorSpec("input_ids", "int64", ("batch_size", "sequence_length")),
            TensorSpec("past_key_values.0.key", "bfloat16", CACHE)),
    outputs=(TensorSpec("logits", "float32", ("batch_size", 10)),
             TensorSpec("present.0.key", "bfloat16", CACHE)),
    aliases={"present.0.key": "past_key_values.0.key"},
    onnx=FileEntry("trt/bf16.onnx", 3, "0" * 64),
    plan=FileEntry("trt/bf16.plan", len(PLAN), hashlib.sha256(PLAN).hexdigest()),
    version_compatible=False,
    refittable=False,
    stripped=False,
    rebuild=("--precision", "bf16", "--max-seq", "64"),
    build_seconds=1.5,
)  # fmt: skip


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "trt").mkdir()
    write(tmp_path, FILE)
    (tmp_path / "trt/bf16.plan").write_bytes(PLAN)
    return tmp_path


def write(folder, file, name="bf16"):
    (folder / "trt" / f"{name}.json").write_text(file.to_json())


def edit(folder, **changes):
    path = folder / "trt/bf16.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(bundle):
    assert read_engine_file(bundle) == FILE
    assert read_engine_file(bundle, "bf16") == FILE
    assert read_plan(bundle, FILE) == PLAN
    assert engine_names(bundle) == ["bf16"]
    assert FILE.row_bytes == 2 * 64 * 16 * 2


def test_which_engine(bundle, tmp_path):
    with pytest.raises(EngineError, match="has no engine fp16, but bf16"):
        read_engine_file(bundle, "fp16")
    write(bundle, FILE, "fp16")
    with pytest.raises(EngineError, match="has engines bf16, fp16") as refused:
        read_engine_file(bundle)
    assert "name one" in refused.value.hint
    with pytest.raises(EngineError, match="has no engine") as refused:
        read_engine_file(tmp_path / "trt")
    assert "llama-export trt" in refused.value.hint


@pytest.mark.parametrize(("changes", "words"), [
    ({"version": 2}, "version 2 is newer than this runtime, which reads 1"),
    ({"format": "other"}, "not an engine of ours"),
    ({"product": "tensorflow"}, 'product is "tensorflow"'),
    ({"max_seq": "64"}, "max_seq is"),
    ({"buckets": [64, 16]}, "buckets is [64, 16], needs rising"),
    ({"buckets": [16, 32]}, "buckets end at 32, max_seq is 64"),
    ({"buckets": [64]}, "profiles has 3 entries, 1 buckets need one more"),
    ({"plan": None}, "plan, product and product_version are given together"),
    ({"prefill_chunk": 0}, "prefill_chunk is 0"),
    ({"profiles": [{"rows": [2, 1, 2], "tokens": [1, 1, 1], "buckets": None}]}, "rows is [2, 1, 2]"),
    ({"plan": {"path": "../x", "size_bytes": 1, "sha256": "0" * 64}}, "without '..'"),
])  # fmt: skip
def test_a_sidecar_that_was_changed(bundle, changes, words):
    edit(bundle, **changes)
    with pytest.raises(EngineError) as refused:
        read_engine_file(bundle)
    assert words in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"format": "llama-export-engine"}'])
def test_a_sidecar_that_is_none(bundle, text):
    (bundle / "trt/bf16.json").write_bytes(text)
    with pytest.raises(EngineError):
        read_engine_file(bundle)


def test_a_plan_that_was_cut_changed_or_removed(bundle):
    plan = bundle / "trt/bf16.plan"
    for content, words in (
        (PLAN[:-1], "19 bytes, its sidecar lists 20"),
        (b"A" + PLAN[1:], "SHA-256 is"),
        (b"", "0 bytes"),
    ):
        plan.write_bytes(content)
        with pytest.raises(EngineError, match=words) as refused:
            read_plan(bundle, FILE)
        assert refused.value.hint == f"llama-export trt {bundle} --precision bf16 --max-seq 64 --force"
    plan.unlink()
    with pytest.raises(EngineError, match="cannot be read"):
        read_plan(bundle, FILE)
    alone = dataclasses.replace(FILE, plan=None, product=None, product_version=None)
    with pytest.raises(EngineError, match="no engine was built from it yet"):
        read_plan(bundle, alone)


@pytest.mark.parametrize(("product", "version", "capability", "words"), [
    ("tensorrt", "11.4", "8.6", "built with tensorrt-rtx 1.7.1.116, tensorrt 11.4 is installed"),
    ("tensorrt-rtx", "1.7.1.117", "8.6", "1.7.1.117 is installed"),
    ("tensorrt-rtx", "1.7.1.116", "9.0", "for compute capability 8.6, 8.9, this GPU has 9.0"),
])  # fmt: skip
def test_another_product_version_or_gpu_is_refused_with_the_command_that_rebuilds(
    bundle, product, version, capability, words
):
    check_runs_here(bundle, FILE, "tensorrt-rtx", "1.7.1.116", "8.9")
    with pytest.raises(EngineError) as refused:
        check_runs_here(bundle, FILE, product, version, capability)
    assert words in refused.value.message
    assert refused.value.hint.startswith(f"llama-export trt {bundle} --precision bf16 --max-seq 64 --force")


@pytest.mark.parametrize(("installed", "fits"), [
    ("11.4.0", True), ("11.5.1", True), ("11.10.0", True), ("11.3.9", False), ("12.0.0", False),
])  # fmt: skip
def test_a_version_compatible_plan_opens_in_later_minor_versions(bundle, installed, fits):
    file = dataclasses.replace(FILE, product="tensorrt", product_version="11.4.0", version_compatible=True)
    if fits:
        check_runs_here(bundle, file, "tensorrt", installed, "8.6")
    else:
        with pytest.raises(EngineError, match="is installed"):
            check_runs_here(bundle, file, "tensorrt", installed, "8.6")


class NoGpu:
    """``cuda.bindings.runtime`` on a machine without a driver."""

    class cudaError_t:  # noqa: N801
        cudaSuccess = 0  # noqa: N815
        cudaErrorMemoryAllocation = 2  # noqa: N815

    @staticmethod
    def cudaGetDeviceCount():  # noqa: N802
        return 35, None

    @staticmethod
    def cudaStreamCreate():  # noqa: N802
        return 35, None


def test_no_gpu_and_no_bindings_are_one_line_each(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", NoGpu)
    assert compute_capability() is None
    with pytest.raises(EngineError, match="no NVIDIA GPU with a driver is here"):
        open_cuda()
    with pytest.raises(EngineError, match="CUDA reports 35"):
        Cuda(NoGpu)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert compute_capability() is None
    with pytest.raises(MissingExtraError, match="cuda-bindings is not installed"):
        open_cuda()
