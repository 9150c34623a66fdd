"""``llama-export trt``: what it prints, and whatever a person can get wrong."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from refusals import refused
from talking_checkpoint import files_in
from tiny_checkpoints import NARROW_HEADS, write_checkpoint

import llama_export
from llama_export.cli import main
from llama_export.recipe import Recipe

pytest.importorskip("tensorrt_rtx")
SMALL = ("--max-seq", "64", "--buckets", "16,64", "--prefill-chunk", "32")


def trt(*arguments):
    return CliRunner().invoke(main, ["trt", *map(str, arguments)])


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_a_checkpoint_becomes_a_verified_bundle_with_an_engine(talking, quick_graphs, tmp_path):
    before = files_in(talking)
    result = trt(talking, tmp_path / "fox", *SMALL)
    assert result.exit_code == 0, result.output
    assert "trt/bf16.plan" in result.stdout
    assert "64 tokens, buckets 16, 64, chunks of 32, 1 row" in result.stdout
    assert "tensorrt-rtx 1." in result.stdout
    assert "--device tensorrt" in result.stdout
    assert json.loads((tmp_path / "fox/manifest.json").read_text())["parity"]["passed"]
    assert files_in(talking) == before
    again = trt(tmp_path / "fox", *SMALL, "--precision", "fp16", "--json")
    assert json.loads(again.stdout)["plan"] == "trt/fp16.plan"
    assert "engines     bf16, fp16" in run("inspect", tmp_path / "fox").stdout


def test_a_dry_run_says_what_it_will_do_and_writes_nothing(talking_bundle):
    before = files_in(talking_bundle)
    result = trt(talking_bundle, *SMALL, "--max-batch", "2", "--dry-run")
    assert result.exit_code == 0, result.output
    for words in (
        "117.1 KiB, bf16",
        "cache     32.0 KiB on the GPU for 2 rows",
        "compute capability 8.0, 8.6",
    ):
        assert words in result.stdout
    plan = json.loads(trt(talking_bundle, *SMALL, "--dry-run", "--json").stdout)
    assert plan["limits"] == {"max_seq": 64, "buckets": [16, 64], "prefill_chunk": 32, "max_batch": 1}
    assert plan["build_memory_bytes"] > 2 * plan["weight_bytes"]
    assert files_in(talking_bundle) == before


def test_the_graph_alone_is_no_engine(talking_bundle, tmp_path):
    result = trt(talking_bundle, tmp_path / "b", *SMALL, "--onnx-only")
    assert result.exit_code == 0, result.output
    assert "trt/bf16.onnx" in result.stdout
    assert "not built" in result.stdout
    # bfloat16 is what the bundle stores: the graph's data are the very same bytes.
    assert (tmp_path / "b/trt/bf16.onnx_data").read_bytes() == (
        tmp_path / "b/onnx/model.onnx_data"
    ).read_bytes()


BAD = {
    "buckets that do not reach": (
        ("--max-seq", "64", "--buckets", "16,32"),
        "buckets end at 32, max_seq is 64",
    ),
    "beyond the model": (("--max-seq", "4096"), "max_seq is 4096, the model has 160 positions"),
    "no numbers": (("--buckets", "many"), "--buckets is 'many'"),
    "fp8 on Ampere": (("--precision", "fp8", "--compute-capability", "8.6"), "8.6 have no fp8, it needs 8.9"),
    "int4 on Turing": (("--precision", "int4", "--compute-capability", "7.5"), "7.5 have no int4"),
    "compute of floats": (("--compute", "fp16"), "compute is fp16, which int8, int4 and fp8 have"),
    "blocks of int8": (("--precision", "int8", "--block-size", "32"), "block size is 32, which int4 has"),
    "odd blocks": (("--precision", "int4", "--block-size", "48"), "must be one of 32, 64, 128"),
    "too old a GPU": (("--compute-capability", "7.5"), "7.5 have no bf16"),
    "unknown GPU": (("--compute-capability", "9.0"), "9.0 is asked for"),
    "no such GPU": (("--compute-capability", "RTX"), "'RTX', must be two numbers"),
    "no builder": (("--builder", "tensorrt"), "not installed: tensorrt"),
    "a bundle's adapter": (("--adapter", "somewhere"), "is a bundle already"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_changes_nothing(talking_bundle, tmp_path, case):
    options, words = BAD[case]
    before = files_in(talking_bundle)
    refused(trt(talking_bundle, *options), words)
    refused(trt(talking_bundle, *options, "--dry-run"), words)
    refused(trt(talking_bundle, tmp_path / "other", *options), words)
    assert files_in(talking_bundle) == before
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_no_source(tmp_path, talking):
    refused(trt(tmp_path / "nothing"), "no such folder")
    (tmp_path / "empty").mkdir()
    refused(trt(tmp_path / "empty"), "empty")
    refused(trt(talking, talking / "inside"), "is inside the checkpoint's folder")


def test_bundles_that_no_engine_can_be_made_of(talking, quick_graphs, tmp_path):
    folder = shutil.copytree(talking, tmp_path / "beside")
    llama_export.export(folder, recipe=Recipe(weights="beside", verify=False))
    before = files_in(folder)
    refused(trt(folder), "is a checkpoint with its bundle beside")
    assert files_in(folder) == before
    # For an output elsewhere it is a checkpoint like any other.
    result = trt(folder, tmp_path / "apart", *SMALL, "--onnx-only", "--no-verify")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "apart/trt/bf16.onnx").exists()
    assert files_in(folder) == before
    llama_export.export(talking, tmp_path / "embeds", recipe=Recipe(inputs_embeds=True, verify=False))
    refused(trt(tmp_path / "embeds"), "takes embeddings in place of token ids")


def test_a_changed_bundle_is_refused_before_any_work(talking_bundle, tmp_path):
    folder = shutil.copytree(talking_bundle, tmp_path / "b")
    with (folder / "onnx/model.onnx").open("ab") as file:
        file.write(b"more")
    refused(trt(folder, *SMALL), "the manifest lists")


def test_heads_that_no_fused_kernel_takes(tmp_path):
    write_checkpoint(tmp_path / "c", NARROW_HEADS, "bfloat16", eos_token_id=2)
    wanted = (tmp_path / "c", tmp_path / "b", "--max-seq", "64", "--no-verify")
    refused(trt(*wanted), "multiple of 8, the checkpoint's is 10")
    result = trt(*wanted, "--precision", "fp32")
    assert result.exit_code == 0, result.output
    assert "no fused kernel" in result.stdout
    # Nor does GroupQueryAttention take such heads: the bundle's own graph is on another path.
    assert json.loads((tmp_path / "b/manifest.json").read_text())["attention"] == "sdpa"


def test_devices_that_are_not_there_are_one_line(talking_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("llama_runtime.cuda._bindings", lambda: None)  # whatever this machine has
    refused(run("run", talking_bundle, "hello", "--device", "tensorrt"), "has no engine")
    refused(run("run", talking_bundle, "hello", "--engine", "bf16"), "engine bf16 is named")
    folder = tmp_path / "b"
    assert trt(talking_bundle, folder, *SMALL, "--onnx-only").exit_code == 0
    refused(run("run", folder, "hello", "--device", "tensorrt"), "no engine was built from it yet")
    assert trt(folder, *SMALL, "--force").exit_code == 0
    refused(run("run", folder, "hello", "--device", "tensorrt"), "cuda-bindings is not installed")
    refused(
        run("run", folder, "hello", "--device", "tensorrt", "--engine", "fp16"),
        "has no engine fp16, but bf16",
    )


def test_onnx_runtime_without_cuda_is_one_line(talking_bundle, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    line = refused(run("run", talking_bundle, "hello", "--device", "cuda"), "has no CUDAExecutionProvider")
    assert "only CPUExecutionProvider" in line


def test_a_provider_that_finds_no_gpu_is_refused_and_not_replaced_by_the_cpu(talking, tmp_path, monkeypatch):
    import onnxruntime

    llama_export.export(talking, tmp_path / "b", recipe=Recipe(attention="sdpa", verify=False))

    taken = onnxruntime.InferenceSession

    def falls_back(model, options, *, providers, disabled_optimizers):
        return taken(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled_optimizers
        )

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    refused(run("run", tmp_path / "b", "hello", "--device", "cuda"), "CUDAExecutionProvider found no GPU")
