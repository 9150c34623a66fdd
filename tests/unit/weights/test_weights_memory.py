"""A checkpoint is streamed: however large it is, only a few pieces are in memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layout_checkpoints import META_FLASH, PARAMS, write_flax, write_meta
from tiny_checkpoints import CONFIGS, write_checkpoint

from llama_export.model import LlamaConfig

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


LARGEST_MB = 143  # the embedding, and the head


def large_weights(config: LlamaConfig) -> dict[str, torch.Tensor]:
    """290 MB in bfloat16, two tensors of 143 MB each."""
    torch.manual_seed(0)
    return {
        name: torch.empty(shape, dtype=torch.bfloat16).uniform_(-1, 1)
        for name, shape in config.tensor_shapes().items()
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "large"
    return write_checkpoint(folder, CONFIG, "bfloat16", weights=large_weights(CONFIG))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to measure memory")
@pytest.mark.parametrize(("mode", "precision"), [("link", ""), ("copy", "float32"), ("copy", "float16")])
def test_memory_is_a_few_pieces(checkpoint, tmp_path, mode, precision):
    assert (checkpoint / "model.safetensors").stat().st_size > 280e6
    run = [sys.executable, "-c", SCRIPT, checkpoint, mode, precision, tmp_path]
    result = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert 0 < result["added_mb"] < LIMIT_MB
    (tmp_path / "model.onnx_data").unlink(missing_ok=True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to measure memory")
@pytest.mark.parametrize("layout", ["meta", "flax"])
def test_joined_shards_are_a_few_pieces_and_transposed_ones_a_tensor(tmp_path, layout):
    if layout == "meta":
        config = dataclasses.replace(
            META_FLASH, vocab_size=70_002, hidden_size=1024, intermediate_size=2736, num_hidden_layers=1
        )
        config = dataclasses.replace(config, head_dim=256)
        params = PARAMS | {"dim": 1024, "n_layers": 1, "max_seq_len": 64}
        source = write_meta(
            tmp_path / "large", config, params, "bfloat16", weights=large_weights(config), shards=2
        )
        limit = LIMIT_MB
    else:
        source = write_flax(tmp_path / "large", CONFIG, "bfloat16", weights=large_weights(CONFIG))
        limit = LIMIT_MB + LARGEST_MB
    assert sum(path.stat().st_size for path in source.iterdir()) > 280e6
    run = [sys.executable, "-c", SCRIPT, source, "copy", "", tmp_path]
    result = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert 0 < result["added_mb"] < limit
