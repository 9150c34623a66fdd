"""TensorRT-RTX parses and builds what we write, without a GPU; the network is what the graph says."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from tiny_checkpoints import VARIANTS, write_checkpoint
from tiny_heads import ARCHITECTURES, write_head_checkpoint

import llama_export
from llama_export.engine import add
from llama_export.engine.add import Target, add_engine
from llama_export.engine.build import build_plan
from llama_export.engine.lint import check_graph
from llama_export.engine.network import check_network, parse_network
from llama_export.engine.options import EngineOptions
from llama_export.engine_export import export_engine
from llama_export.errors import BundleError, EngineError, OptionError
from llama_export.recipe import Recipe
from llama_runtime.engine_file import read_engine_file, read_plan
from llama_runtime.errors import MissingExtraError
from llama_runtime.manifest import check_hashes, read_manifest
from llama_runtime.tensorrt_library import Library, find_library

pytest.importorskip("tensorrt_rtx")
SMALL = {"max_seq": 64, "buckets": (16, 64), "prefill_chunk": 32, "max_batch": 2}


@pytest.fixture(scope="module")
def library():
    return find_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def bundle(talking_bundle, tmp_path_factory):
    """A bundle with the graph alone, in float16, and with a bfloat16 engine."""
    output = tmp_path_factory.mktemp("engines") / "fox"
    export_engine(talking_bundle, output, options=EngineOptions(precision="fp16", **SMALL), onnx_only=True)
    export_engine(output, options=EngineOptions(**SMALL))
    return output


def test_a_bundle_gets_an_engine_and_stays_what_it_was(bundle, talking_bundle):
    manifest, before = read_manifest(bundle), read_manifest(talking_bundle)
    check_hashes(bundle, manifest)
    added = {entry.path for entry in manifest.files} - {entry.path for entry in before.files}
    assert added == {"trt/bf16.json", "trt/bf16.plan", "trt/fp16.json", "trt/fp16.onnx", "trt/fp16.onnx_data"}
    assert dataclasses.replace(manifest, files=before.files) == before
    engine = read_engine_file(bundle, "bf16")
    assert (engine.product, engine.dtype, engine.buckets) == ("tensorrt-rtx", "bfloat16", (16, 64))
    plan = read_plan(bundle, engine)
    assert hashlib.sha256(plan).hexdigest() == engine.plan.sha256
    assert engine.build_seconds > 0
    assert read_engine_file(bundle, "fp16").plan is None


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_every_precision_builds(talking_bundle, tmp_path, precision):
    done = export_engine(talking_bundle, tmp_path / "b", options=EngineOptions(precision=precision, **SMALL))
    assert done.added.built.fused is (precision != "fp32")
    assert read_plan(done.output, done.added.engine)[4:8] != b""
    assert sorted(path.name for path in (done.output / "trt").iterdir()) == [
        f"{precision}.json", f"{precision}.plan",
    ]  # fmt: skip


@pytest.mark.parametrize("task", ARCHITECTURES)
def test_every_head_builds(tmp_path, task):
    write_head_checkpoint(tmp_path / "c", task)
    options = EngineOptions(max_seq=64, prefill_chunk=32)
    done = export_engine(tmp_path / "c", tmp_path / "b", options=options, recipe=Recipe(verify=False))
    engine = done.added.engine
    assert (engine.task, engine.buckets, engine.aliases, len(engine.profiles)) == (task, (), {}, 1)
    assert engine.plan is not None


@pytest.mark.parametrize("name", ["dynamic", "longrope", "yarn"])
def test_every_rope_and_activation_builds(tmp_path, name):
    write_checkpoint(tmp_path / "c", VARIANTS[name], "bfloat16", eos_token_id=2)
    options = EngineOptions(max_seq=64, buckets=(64,))
    done = export_engine(tmp_path / "c", tmp_path / "b", options=options, recipe=Recipe(verify=False))
    assert done.added.engine.plan is not None


def test_the_network_is_what_the_graph_says(bundle, library):
    engine = read_engine_file(bundle, "fp16")
    trt = library.module
    logger = trt.Logger(trt.Logger.ERROR)
    network, _parser = parse_network(library, trt.Builder(logger), logger, bundle / "trt/fp16.onnx")
    check_network(library, network, engine)
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    assert kinds.count(trt.LayerType.KV_CACHE_UPDATE) == len(engine.aliases) == 4
    assert kinds.count(trt.LayerType.ATTENTION_INPUT) == 2
    for wrong, words in (
        ({"aliases": {"present.0.key": "past_key_values.0.key"}}, "has 4 cache updates, the model needs 1"),
        ({"inputs": engine.inputs[1:]}, "network's inputs are"),
    ):
        with pytest.raises(EngineError, match=words):
            check_network(library, network, dataclasses.replace(engine, **wrong))


def test_a_bucket_that_no_shape_follows_from_is_found(bundle, library, tmp_path):
    """kv_bucket that is read as data alone would be copied to the GPU and wait there."""
    model = onnx.load(bundle / "trt/fp16.onnx")
    for node in model.graph.node:
        if node.op_type == "Slice" and "kv_bucket" in node.input:
            node.input[2] = "fixed"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([64]), "fixed"))
    doubled = onnx.helper.make_node("Add", ["kv_bucket", "kv_bucket"], ["doubled"])
    model.graph.node.append(doubled)
    model.graph.output.append(onnx.helper.make_tensor_value_info("doubled", onnx.TensorProto.INT64, [1]))
    onnx.save(model, tmp_path / "bad.onnx")
    trt = library.module
    logger = trt.Logger(trt.Logger.ERROR)
    network, _parser = parse_network(library, trt.Builder(logger), logger, tmp_path / "bad.onnx")
    with pytest.raises(EngineError, match="kv_bucket is no shape tensor"):
        check_network(library, network, read_engine_file(bundle, "fp16"))


def test_what_the_parser_refuses_names_the_node(bundle, library, tmp_path):
    model = onnx.load(bundle / "trt/fp16.onnx")
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    attention.input.extend(["past_key_values.0.key", "past_key_values.0.value"])
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(EngineError, match=r"bad\.onnx: Attention layers\.0\.Attention_\d+: "):
        build_plan(library, tmp_path / "bad.onnx", read_engine_file(bundle, "fp16"), tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_what_the_builder_refuses_is_one_sentence(bundle, library, tmp_path):
    engine = dataclasses.replace(
        read_engine_file(bundle, "fp16"), compute_capabilities=("7.5",), dtype="float16"
    )
    model = onnx.load(bundle / "trt/fp16.onnx")
    cast = onnx.helper.make_node("Cast", ["logits"], ["narrow"], to=onnx.TensorProto.BFLOAT16)
    model.graph.node.append(cast)
    model.graph.output.append(onnx.helper.make_tensor_value_info("narrow", onnx.TensorProto.BFLOAT16, None))
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(EngineError, match=r"bad\.onnx: tensorrt-rtx 1\.\S+ cannot build it: .*sm75"):
        build_plan(library, tmp_path / "bad.onnx", engine, tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_a_trap_stops_the_build_and_leaves_the_bundle_as_it_was(
    talking_bundle, tmp_path, library, monkeypatch
):
    built = add.build_static_graph

    def with_trap(*arguments):
        model = built(*arguments)
        attention = next(node for node in model.graph if node.op_type == "Attention")
        attention.attributes.add(add.ir.AttrInt64("is_causal", 1))
        return model

    monkeypatch.setattr(add, "build_static_graph", with_trap)
    with pytest.raises(EngineError, match=r"bf16\.onnx: Attention .*upper-left"):
        export_engine(talking_bundle, tmp_path / "b", options=EngineOptions(**SMALL))
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_replaced_only_with_force(bundle):
    with pytest.raises(BundleError, match="has an engine fp16 already") as refused:
        export_engine(bundle, options=EngineOptions(precision="fp16", **SMALL), onnx_only=True)
    assert "--force" in refused.value.hint
    options = EngineOptions(precision="fp16", max_seq=32, buckets=(32,))
    export_engine(bundle, options=options, onnx_only=True, force=True)
    check_hashes(bundle, read_manifest(bundle))
    assert read_engine_file(bundle, "fp16").max_seq == 32
    assert read_engine_file(bundle, "bf16").max_seq == 64
    export_engine(bundle, options=EngineOptions(precision="fp16", **SMALL), onnx_only=True, force=True)


@pytest.mark.parametrize(("choice", "words"), [
    ({"version_compatible": True}, "version-compatible plans"),
    ({"refittable": True}, "refittable plans"),
    ({"stripped": True}, "plans without weights"),
    ({"timing_cache": Path("timings")}, "timing cache"),
])  # fmt: skip
def test_what_tensorrt_rtx_does_not_have(talking_bundle, tmp_path, choice, words):
    with pytest.raises(OptionError, match=f"tensorrt-rtx has no {words}") as refused:
        export_engine(talking_bundle, tmp_path / "b", options=EngineOptions(**choice, **SMALL))
    assert "--builder tensorrt" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


class RecordingBuilder:
    """``tensorrt``'s module as far as a build calls it, on TensorRT-RTX's: all but the last step is real."""

    def __init__(self, trt):
        recorded = self

        class Config:
            """Its timings are bytes that begin with a mark; TensorRT-RTX's own are no operation."""

            def __init__(self, real):
                object.__setattr__(self, "real", real)

            def __getattr__(self, name):
                return getattr(self.real, name)

            def create_timing_cache(self, content):
                return content

            def set_timing_cache(self, cache, ignore_mismatch):
                recorded.given = cache
                return cache[:4] in (b"", b"time") and not ignore_mismatch

            def get_timing_cache(self):
                return SimpleNamespace(serialize=lambda: b"time and again")

        class Builder:
            def __init__(self, logger):
                self.real = trt.Builder(logger)

            def create_builder_config(self):
                return Config(self.real.create_builder_config())

            def __getattr__(self, name):
                return getattr(self.real, name)

            def build_serialized_network(self, network, config):
                flags = trt.BuilderFlag.__members__.items()
                recorded.flags = {name for name, flag in flags if config.get_flag(flag)}
                recorded.profiles = config.num_optimization_profiles
                return b"a plan"

        self._trt, self.Builder = trt, Builder

    def __getattr__(self, name):
        return getattr(self._trt, name)


@pytest.fixture
def tensorrt(library, monkeypatch):
    module = RecordingBuilder(library.module)
    found = Library(module, "tensorrt", "11.4.0")
    monkeypatch.setattr("llama_export.engine_export.find_library", lambda wanted: found)
    monkeypatch.setattr("llama_export.engine_export.compute_capability", lambda: "9.0")
    return module


OF_PLANS = {
    "version_compatible": {"VERSION_COMPATIBLE"},
    "refittable": {"REFIT"},
    "stripped": {"STRIP_PLAN", "REFIT_IDENTICAL"},
    "refittable stripped": {"STRIP_PLAN", "REFIT"},
    "": set(),
}


@pytest.mark.parametrize("choices", OF_PLANS)
def test_what_tensorrt_is_told(talking_bundle, tmp_path, tensorrt, choices):
    chosen = choices.split()
    options = EngineOptions(**dict.fromkeys(chosen, True), **SMALL)
    done = export_engine(talking_bundle, tmp_path / "b", options=options)
    asked = set().union(*OF_PLANS.values())
    assert (tensorrt.flags & asked, tensorrt.profiles) == (OF_PLANS[choices], 3)
    engine = read_engine_file(done.output, "bf16")
    assert (engine.product, engine.compute_capabilities) == ("tensorrt", ("9.0",))
    assert [word for word in engine.rebuild[-2:] if word.startswith("--")][-len(chosen) :] == [
        f"--{name.replace('_', '-')}" for name in chosen or ["max_batch"]
    ]
    kept = {path.name for path in (done.output / "trt").iterdir()}
    graph = {"bf16.onnx", "bf16.onnx_data"} if engine.stripped else set()
    assert kept == {"bf16.json", "bf16.plan", *graph}
    check_hashes(done.output, read_manifest(done.output))


def test_a_timing_cache_is_made_and_used_again(talking_bundle, tmp_path, tensorrt):
    options = EngineOptions(timing_cache=tmp_path / "timings", **SMALL)
    export_engine(talking_bundle, tmp_path / "a", options=options)
    assert (tensorrt.given, (tmp_path / "timings").read_bytes()) == (b"", b"time and again")
    export_engine(talking_bundle, tmp_path / "b", options=options)
    assert tensorrt.given == b"time and again"
    (tmp_path / "timings").write_bytes(b"something else")
    with pytest.raises(EngineError, match="timings: is no timing cache of this builder and GPU"):
        export_engine(talking_bundle, tmp_path / "c", options=options)
    assert not (tmp_path / "c").exists()


def test_without_a_builder_one_line_says_what_to_install(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"not installed: tensorrt .*tensorrt_rtx") as refused:
        find_library()
    assert "llama-export[trt-rtx]" in refused.value.hint


def test_the_same_engine_of_a_bundle_that_is_staged(talking_bundle, library, tmp_path):
    """add_engine is what both ways share; a second one of the same name takes the first one's place."""
    done = export_engine(talking_bundle, tmp_path / "b", options=EngineOptions(**SMALL), onnx_only=True)
    target = Target(library, ("8.6",))
    added = add_engine(done.output, done.added.manifest, EngineOptions(**SMALL), target)
    assert added.engine.compute_capabilities == ("8.6",)
    assert not (done.output / "trt/bf16.onnx").exists()
    check_hashes(done.output, read_manifest(done.output))


@pytest.mark.parametrize(("path", "words"), [
    ("flash", "WidenGemm .* is an operator of llama_export, which the parser does not know"),
    ("sdpa", "the network has 0 cache updates, the model needs 4"),
])  # fmt: skip
def test_a_graph_of_another_contract_is_refused_and_nothing_is_written(
    talking, bundle, library, tmp_path, path, words
):
    """A bundle's own graph is no engine's: the one that is built must have its caches updated in place."""
    llama_export.export(talking, tmp_path / "b", recipe=Recipe(path, verify=False))
    graph, plan = tmp_path / "b/onnx/model.onnx", tmp_path / "plan"
    with pytest.raises(EngineError, match=words) as refused:
        check_graph(onnx.load(graph, load_external_data=False), graph.name)
        build_plan(library, graph, read_engine_file(bundle, "fp16"), plan)
    assert refused.value.exit_code == 2
    assert not plan.exists()
