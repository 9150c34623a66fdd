"""A checkpoint is streamed: however large it is, only a few pieces are in memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import CONFIGS, write_checkpoint

LIMIT_MB = 200  # three pieces of 16 MiB in flight, each with its cast of up to 32, and the one being read
CONFIG = dataclasses.replace(
    CONFIGS["gqa"], vocab_size=70_001, hidden_size=1020, num_hidden_layers=1, intermediate_size=900
)

# Runs alone, so that only its own memory is counted; mapped files and page cache are not private.
SCRIPT = """
import json, sys, threading, time
from pathlib import Path
from llama_export.checkpoint import open_checkpoint
from llama_export.weights import plan_weights, write_weights

def private_kb():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])

checkpoint = open_checkpoint(Path(sys.argv[1]))
plan = plan_weights(checkpoint, sys.argv[2], sys.argv[3] or None)
before, peak, running = private_kb(), 0, True

def watch():
    global peak
    while running:
        peak = max(peak, private_kb())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
write_weights(checkpoint, plan, Path(sys.argv[4]), lambda nbytes: None)
running = False
thread.join()
print(json.dumps({"added_mb": (peak - before) / 1024, "samples": peak}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """290 MB in bfloat16, two tensors of 143 MB each."""
    torch.manual_seed(0)
    weights = {
        name: torch.empty(shape, dtype=torch.bfloat16).uniform_(-1, 1)
        for name, shape in CONFIG.tensor_shapes().items()
    }
    return write_checkpoint(tmp_path_factory.mktemp("memory") / "large", CONFIG, "bfloat16", weights=weights)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to measure memory")
@pytest.mark.parametrize(("mode", "precision"), [("link", ""), ("copy", "float32"), ("copy", "float16")])
def test_memory_is_a_few_pieces(checkpoint, tmp_path, mode, precision):
    assert (checkpoint / "model.safetensors").stat().st_size > 280e6
    run = [sys.executable, "-c", SCRIPT, checkpoint, mode, precision, tmp_path]
    result = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert 0 < result["added_mb"] < LIMIT_MB
    (tmp_path / "model.onnx_data").unlink(missing_ok=True)
