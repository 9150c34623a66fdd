"""Bundles with engines that a played TensorRT loads, and the library built with its headers."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
from pathlib import Path

import c_abi
import pytest
from cpp_bundles import REPO, build, copy_bundle, edit_manifest

import llama_runtime
from llama_export.engine.options import EngineOptions
from llama_export.engine_export import export_engine

PROMPT = "once upon a time there was a small red fox"
OPTIONS = EngineOptions(precision="fp32", max_seq=96, buckets=(16, 32, 96), prefill_chunk=8, max_batch=2)
PLAYED = {"tensorrt": "11.4.0.106", "tensorrt-rtx": "1.4.0.106"}


def give_plan(bundle: Path, name: str, product: str, changes: dict[str, object] | None = None) -> None:
    """Make an engine's sidecar list a plan that the played TensorRT loads: the path of its graph."""
    changes = dict(changes or {})
    path = bundle / "trt" / f"{name}.json"
    document = json.loads(path.read_text())
    plan = str(changes.pop("content", path.with_suffix(".onnx"))).encode()
    path.with_suffix(".plan").write_bytes(plan)
    entry = {"path": f"trt/{name}.plan", "size_bytes": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
    document |= {"plan": entry, "product": product, "product_version": PLAYED[product]}
    path.write_text(json.dumps(document | {"compute_capabilities": ["8.6", "8.9"]} | changes))
    list_again(bundle, f"trt/{name}.json")


def list_again(bundle: Path, name: str) -> None:
    """Make the manifest list a file of the bundle as it is now, or no more where it is gone."""
    path = bundle / name

    def change(document):
        document["files"] = [entry for entry in document["files"] if entry["path"] != name]
        if path.exists():
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            entry = {"path": name, "size_bytes": path.stat().st_size, "sha256": sha256}
            document["files"].append(entry)

    edit_manifest(bundle, change)


@pytest.fixture(scope="session")
def exported(talking_bundle, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("engines") / "fox"
    export_engine(talking_bundle, output, options=OPTIONS, onnx_only=True)
    return export_engine(
        output, options=dataclasses.replace(OPTIONS, precision="fp16"), onnx_only=True
    ).output


@pytest.fixture(scope="session", params=["tensorrt", "tensorrt-rtx"])
def product(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def folder(ort_home, product) -> Path:
    """Built with the played headers of TensorRT, or of TensorRT-RTX."""
    return build(
        f"cpp-{product}",
        *(f"-DORT_HOME={ort_home}", f"-DTENSORRT_HOME={REPO / 'runtime/cpp/tests/played'}"),
        f"-DCMAKE_CXX_FLAGS={'-DPLAYED_TENSORRT_RTX' * (product == 'tensorrt-rtx')}",
        "-DBUILD_SHARED_LIBS=ON",
    )


@pytest.fixture(scope="session")
def bundle(exported, product, tmp_path_factory) -> Path:
    output = copy_bundle(exported, tmp_path_factory.mktemp("plans") / "fox")
    for name in ("fp32", "fp16"):
        give_plan(output, name, product)
    return output


@pytest.fixture
def played(folder, onnxruntime_library, monkeypatch) -> Path:
    library = folder / "tests/libplayed_tensorrt.so"
    monkeypatch.setenv("LLAMA_RUNTIME_ONNXRUNTIME", str(onnxruntime_library))
    monkeypatch.setenv("LLAMA_RUNTIME_TENSORRT", str(library))
    monkeypatch.setenv("LLAMA_RUNTIME_CUDART", str(library))
    return library


@pytest.fixture
def counts(played):
    """How often the played TensorRT did something, since the last question."""
    library, before = ctypes.CDLL(str(played)), {}

    def count(what):
        now = library.played_count(what.encode())
        done, before[what] = now - before.get(what, 0), now
        return now if what == "live" else done

    for what in ("run", "launch", "alloc"):
        count(what)
    return count


@pytest.fixture
def open_engine(folder, played, onnxruntime_library):
    opened: list[c_abi.Model] = []
    library = c_abi.load(folder / "libllama_runtime.so")

    def open_(bundle, engine="fp32", **options):
        places = {"device": "tensorrt"} | ({"engine": engine} if engine else {})
        opened.append(c_abi.Model(library, onnxruntime_library, bundle, **places, **options))
        return opened[-1]

    yield open_
    for model in opened:
        model.close()


@pytest.fixture(scope="session")
def reference(exported):
    return llama_runtime.load(exported, threads=1)
