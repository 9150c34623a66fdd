"""Meta's own files: a 7B-shaped folder to a bundle, and a 65B-shaped one, of sparse shards, to a folder.

The 7B has random weights, no two tensors alike. The 65B is written as holes and read as zeros, and its output
goes into holes again: only structure and memory count there, and its seconds are not those of a real disk.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import peers
import torch
from checkpoints import CHUNK, SEED, SHAPES, SPREAD, Shape
from conversion import OURS, remove, size
from machine import settle
from measure import last_error, measure
from rounds import Candidate, Outcome, Sample, interleave
from tokenizer_files import write_tokenizer

LLAMA_65B = Shape(32000, 8192, 22016, 80, 64, 64, 128, 2048)
STATED = (
    "not run: its documentation asks for the whole model in memory at once, "
    "{gib:.1f} GiB in 16 bits for this shape"
)


def bench(work: Path, repeats: int, shape: str) -> dict[str, Outcome]:
    """Export and convert one file of Meta's in turn; all folders are removed at the end.

    Args:
        work: A disk with room for twice the 7B.
        repeats: Rounds.
        shape: Stands in for 7B where the benchmark itself is tried.
    """
    of = SHAPES["tiny"] if shape == "tiny" else SHAPES["Llama-2-7B"]
    folder, output = write_meta(work / "7B", of, shards=1, fill=True), work / "export"
    bundle = [OURS, "onnx", folder, output, "--no-verify", "--force"]
    plain = [OURS, "convert", folder, output]
    found = interleave(
        [
            Candidate("ours, 7B to a bundle", lambda: run(bundle, output, folder)),
            Candidate("ours, 7B to a Hugging Face folder", lambda: run(plain, output, folder)),
        ],
        repeats,
    )
    shutil.rmtree(folder)
    return found | stated("7B", of)


def bench_sparse(work: Path, shape: str) -> dict[str, Outcome]:
    """Convert eight shards of holes, once: memory does not vary."""
    of, shards = (SHAPES["tiny"], 2) if shape == "tiny" else (LLAMA_65B, 8)
    folder, output = write_meta(work / "65B", of, shards=shards, fill=False), work / "export"
    sparse = [sys.executable, peers.WORKERS / "convert_sparse.py", folder, output]
    name = f"ours, 65B in {shards} sparse shards to a sparse folder"
    found = interleave([Candidate(name, lambda: run(sparse, output))], 1)
    shutil.rmtree(folder)
    return found | stated("65B", of)


def stated(name: str, shape: Shape) -> dict[str, Outcome]:
    """The row of the script that people are told to use, which was not run."""
    weights = sum(int(np.prod(dims)) for dims in shape.tensors().values())
    row = f"transformers' convert_llama_weights_to_hf.py, {name}"
    return {row: Outcome(failures=[STATED.format(gib=weights * 2 / 2**30)])}


def run(command: list[str | Path], output: Path, *warm: Path) -> Sample:
    """Convert once into a fresh folder, and remove it.

    Raises:
        RuntimeError: It failed.
    """
    remove(output)
    settle(*warm)
    measured = measure(command, timeout_s=3600)
    written = size(output)
    remove(output)
    if measured.returncode:
        raise RuntimeError(last_error(measured))
    return {"seconds": measured.seconds, "output_bytes": written} | measured.conditions()


def write_meta(folder: Path, shape: Shape, *, shards: int, fill: bool) -> Path:
    """Write a folder as Meta distributes it, in float16, without ever holding its weights.

    Args:
        folder: Made anew.
        shape: The architecture; hidden_size is heads x head_dim.
        shards: Every matrix is cut into so many.
        fill: With random numbers; else the files are holes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    params = {
        "dim": shape.hidden_size,
        "n_layers": shape.num_hidden_layers,
        "n_heads": shape.num_attention_heads,
    }
    params |= {"n_kv_heads": shape.num_key_value_heads, "norm_eps": 1e-6, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params))
    for index in range(shards):
        path = folder / f"consolidated.{index:02}.pth"
        state = {
            name: torch.empty(dims, dtype=torch.float16) for name, dims in meta_shapes(shape, shards).items()
        }
        with torch.serialization.skip_data():
            torch.save(state, path)
        if fill:
            fill_randomly(path, index)
    if shape.vocab_size == 32000:
        write_tokenizer(folder, shape.vocab_size)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink(missing_ok=True)
    return folder


def meta_shapes(shape: Shape, shards: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of one shard."""
    hidden, inter, kv = shape.hidden_size, shape.intermediate_size, shape.num_key_value_heads * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (shape.vocab_size, hidden // shards),
        "norm.weight": (hidden,),
        "output.weight": (shape.vocab_size // shards, hidden),
    }
    for i in range(shape.num_hidden_layers):
        shapes |= {
            f"layers.{i}.attention.wq.weight": (hidden // shards, hidden),
            f"layers.{i}.attention.wk.weight": (kv // shards, hidden),
            f"layers.{i}.attention.wv.weight": (kv // shards, hidden),
            f"layers.{i}.attention.wo.weight": (hidden, hidden // shards),
            f"layers.{i}.feed_forward.w1.weight": (inter // shards, hidden),
            f"layers.{i}.feed_forward.w2.weight": (hidden, inter // shards),
            f"layers.{i}.feed_forward.w3.weight": (inter // shards, hidden),
            f"layers.{i}.attention_norm.weight": (hidden,),
            f"layers.{i}.ffn_norm.weight": (hidden,),
        }
    return shapes


def fill_randomly(path: Path, seed: int) -> None:
    """Write random float16 numbers where the archive has room for its tensors."""
    places = torch.load(path, map_location="meta", weights_only=True, mmap=True)

    def fill(index: int, tensor: torch.Tensor) -> None:
        rng = np.random.Generator(np.random.SFC64([SEED, seed, index]))
        begin = tensor.untyped_storage()._checkpoint_offset
        with path.open("r+b") as stream:
            stream.seek(begin or 0)
            for start in range(0, tensor.numel(), CHUNK):
                values = rng.random(min(CHUNK, tensor.numel() - start), np.float32)
                values -= 0.5
                values *= 2 * SPREAD
                stream.write(values.astype(np.float16).data)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(fill, i, tensor) for i, tensor in enumerate(places.values())]:
            done.result()
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
