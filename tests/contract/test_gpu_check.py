"""The GPU check's dry run: every path is measured or says why it is not, engines played on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_A_GPU = {"torch.compile, CUDA graphs", "TensorRT bf16"}


@pytest.mark.long
def test_the_dry_run_of_the_gpu_check(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    output = tmp_path / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks/gpu_check.py", "--device", "cpu", "--shape", "tiny"]
    command += ["--max-seq", "512", "--buckets", "256,512", "--work", tmp_path, "--output", output]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(output.read_text())
    found = {result["path"]: result for result in facts["results"]}
    assert {path for path, result in found.items() if result["available"] != "yes"} == WITHOUT_A_GPU
    assert {f"TensorRT {precision}" for precision in ("fp16", "fp32", "int8", "int4", "fp8")} <= found.keys()
    for path in found.keys() - WITHOUT_A_GPU:
        assert found[path]["passed"], found[path]
        assert found[path]["decode_ms"].keys() == {"256", "512"}
        assert path in done.stdout
    assert facts["versions"]["tensorrt_rtx_cu13"] != "not available"
    assert "not available: RuntimeError: needs a GPU" in done.stdout
