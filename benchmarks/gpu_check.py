"""Does a GPU compute what the eager model does, and how fast: every path that is installed, in one table.

    python benchmarks/gpu_check.py                                  # Llama-2-7B's shape, bfloat16, one GPU
    python benchmarks/gpu_check.py --device cpu --shape tiny        # a dry run: engines are played

The weights are drawn on the spot. What is missing is listed as 'not available', with the reason. The tables
go to stdout, everything to the JSON file that ``--output`` names. Exit code 1 where a path does not compute
what the reference does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import SHAPES, make_checkpoint
from gpu_paths import (
    PROMPT,
    STEPS,
    CompiledPath,
    RunPath,
    SessionPath,
    TorchPath,
    engine_session,
    played_session,
    read_all,
    torch_model,
)

import llama_export
import llama_runtime
from llama_export.checkpoint import Checkpoint, open_merged
from llama_export.engine.options import PRECISIONS, EngineOptions
from llama_export.engine.weights import TABLE_WEIGHT, plan_engine_weights
from llama_export.engine_export import export_engine
from llama_export.recipe import Recipe
from llama_runtime.tensorrt_session import ROUNDING

PACKAGES = (
    *("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx_cu13", "cuda-bindings", "triton"),
)
# Of the largest logit. 16-bit weights and activations round in every layer; the reference does not.
LIMITS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 8e-2} | ROUNDING | {"fp32": 1e-3, "fp16": 2e-2}
ITEM_BYTES = {"float32": 4.0, "fp32": 4.0}  # of a weight that a decode reads, where it is not 2
TIMED = 32


@dataclass
class Result:
    """What became of one path; None is not measured."""

    path: str
    dtype: str
    available: str = "yes"
    error: float | None = None
    passed: bool | None = None
    same_tokens: float | None = None
    prefill_tok_s: float | None = None
    decode_ms: dict[str, float] = field(default_factory=dict)
    bandwidth_share: dict[str, float] = field(default_factory=dict)
    peak_gib: float | None = None


@dataclass(frozen=True)
class Setting:
    """What all paths are given."""

    args: argparse.Namespace
    source: Checkpoint
    checkpoint: Path
    work: Path
    buckets: tuple[int, ...]
    ids: np.ndarray
    wanted: np.ndarray
    bandwidth: float


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        setting = prepare(args, Path(work))
        results = [measure(setting, name, *how) for name, how in paths(setting).items()]
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(args.device),
        "shape": args.shape,
        "buckets": setting.buckets,
        "bandwidth_gb_s": round(setting.bandwidth / 1e9, 1),
        "versions": versions(),
        "results": [vars(result) for result in results],
    }
    print(table(facts, results))
    if args.output:
        args.output.write_text(json.dumps(facts, indent=1) + "\n")
    return int(any(result.passed is False for result in results))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="Llama-2-7B")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--max-seq", type=int, default=2048)
    parser.add_argument("--buckets", default="512,1024,2048")
    parser.add_argument("--work", type=Path, help="where checkpoint and bundles go for a while")
    parser.add_argument("--output", type=Path, help="a JSON file")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no NVIDIA GPU; --device cpu --shape tiny is the dry run")
    return args


def prepare(args: argparse.Namespace, work: Path) -> Setting:
    """Draw the weights, and compute with the reference what every path must compute."""
    checkpoint = make_checkpoint(work / "checkpoint", SHAPES[args.shape], "bfloat16")
    source = open_merged(checkpoint, (), None)
    buckets = tuple(int(number) for number in args.buckets.split(","))
    length = max(PROMPT + STEPS, buckets[-1])
    ids = np.random.default_rng(11).integers(3, source.config.vocab_size, length)
    reference = TorchPath(torch_model(source, "eager", torch.float32, args.device), args.max_seq)
    wanted = read_all(reference, ids, buckets)
    del reference
    return Setting(args, source, checkpoint, work, buckets, ids, wanted, bandwidth(args.device))


def paths(setting: Setting) -> dict[str, tuple[str, Callable[[], RunPath]]]:
    """Every path by name: its dtype, and what makes it."""
    args, source, most = setting.args, setting.source, setting.args.max_seq

    def model(attention: str, dtype: torch.dtype) -> Callable[[], RunPath]:
        return lambda: TorchPath(torch_model(source, attention, dtype, args.device), most)

    def compiled() -> RunPath:
        if args.device != "cuda":
            raise RuntimeError("needs a GPU")
        eager = torch_model(source, "sdpa", torch.bfloat16, args.device)
        return CompiledPath(eager, most, setting.buckets, "reduce-overhead")

    def onnx(name: str, recipe: Recipe) -> Callable[[], RunPath]:
        def path() -> RunPath:
            folder = setting.work / name
            llama_export.export(setting.checkpoint, folder, recipe=recipe, force=True)
            return SessionPath(llama_runtime.load(folder, device=args.device).session, most)

        return path

    found: dict[str, tuple[str, Callable[[], RunPath]]] = {
        "torch eager": ("bfloat16", model("eager", torch.bfloat16)),
        "torch sdpa": ("bfloat16", model("sdpa", torch.bfloat16)),
        "torch flash": ("bfloat16", model("flash", torch.bfloat16)),
        "torch.compile, CUDA graphs": ("bfloat16", compiled),
        f"ONNX Runtime, {args.device}, flash": (
            "float16", onnx("flash", Recipe(compute="float16", verify=False))
        ),
        f"ONNX Runtime, {args.device}, sdpa": (
            "float32", onnx("sdpa", Recipe(attention="sdpa", verify=False))
        ),
    }  # fmt: skip
    for precision in PRECISIONS:
        found[f"TensorRT {precision}"] = (precision, lambda p=precision: engine(setting, p))  # type: ignore[misc]
    return found


def engine(setting: Setting, precision: Any) -> RunPath:
    """An engine on the GPU; on the CPU its graph, played."""
    args, on_gpu = setting.args, setting.args.device == "cuda"
    if not on_gpu and precision == "bf16":
        raise RuntimeError("needs a GPU: ONNX Runtime has no bfloat16 arithmetic on CPUs")
    few_bits = precision in ("int8", "int4", "fp8")
    options = EngineOptions(
        precision=precision, max_seq=args.max_seq, buckets=setting.buckets, prefill_chunk=64,
        compute="fp16" if few_bits and not on_gpu else None,
    )  # fmt: skip
    done = export_engine(
        setting.checkpoint, setting.work / f"trt-{precision}", options=options, recipe=Recipe(verify=False),
        onnx_only=not on_gpu, force=True,
    )  # fmt: skip
    session = engine_session(done.output, precision) if on_gpu else played_session(done.output, precision, 2)
    return SessionPath(session, args.max_seq)


def measure(setting: Setting, name: str, dtype: str, make: Callable[[], RunPath]) -> Result:
    """Parity first, then speed; whatever goes wrong is this path's own."""
    result = Result(name, dtype)
    say(f"{name} ...")
    reset_peak()
    try:
        path = make()
        check(setting, path, result)
        clock(setting, path, result)
    except Exception as error:  # the next path must have its turn, and this one's cause is in the table
        result.available = f"not available: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
    result.peak_gib = peak_gib()
    return result


def check(setting: Setting, path: RunPath, result: Result) -> None:
    """Chunked prefill behind garbage, decode, and every bucket, against the reference."""
    path.spoil()
    found, wanted = read_all(path, setting.ids, setting.buckets), setting.wanted
    result.error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    result.same_tokens = float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean())
    result.passed = bool(np.isfinite(found).all() and result.error <= LIMITS[result.dtype])


def clock(setting: Setting, path: RunPath, result: Result) -> None:
    """Prefill, and decode at the end of every bucket, with CUDA graphs and without where there are any."""
    rng = np.random.default_rng(5)
    prompt = rng.integers(3, setting.source.config.vocab_size, min(512, setting.args.max_seq - TIMED))
    path.read(prompt, 0)
    result.prefill_tok_s = round(len(prompt) / seconds(lambda: path.read(prompt, 0), 3), 1)
    # Of the embedding, a decode reads one row; a tied one is read as the head.
    unread = set() if setting.source.config.tie_word_embeddings else {"model.embed_tokens.weight"}
    read = {name: t for name, t in setting.source.tensors.items() if name not in unread}
    weights = sum(t.nbytes for t in read.values()) // 2 * ITEM_BYTES.get(result.dtype, 2.0)
    if result.dtype in ("int8", "int4", "fp8"):
        weights = step_bytes(setting, result.dtype)
    engine = getattr(getattr(path, "session", None), "engine", None)
    for graphs in (True, False) if hasattr(engine, "use_graphs") else (None,):
        if graphs is not None:
            engine.use_graphs = graphs
        for bucket in setting.buckets:
            start = max(bucket - TIMED - 1, 1)
            token = prompt[:1]
            fill(path, setting, start)
            step_s = seconds(lambda start=start, token=token: path.read(token, start), TIMED)  # type: ignore[misc]
            label = f"{bucket}" + ("" if graphs in (True, None) else ", no graphs")
            result.decode_ms[label] = round(step_s * 1000, 3)
            share = weights / step_s / setting.bandwidth
            result.bandwidth_share[label] = round(share, 3)


def step_bytes(setting: Setting, precision: Any) -> float:
    """Bytes of weights that a decode of an engine of few bits reads: all but the table of embeddings."""
    plan = plan_engine_weights(setting.source, EngineOptions(precision=precision), precision)
    return float(sum(w.nbytes for name, w in plan.weights.items() if name != TABLE_WEIGHT))


def fill(path: RunPath, setting: Setting, length: int) -> None:
    """Make a cache hold ``length`` tokens: read them."""
    ids = np.random.default_rng(9).integers(3, setting.source.config.vocab_size, length)
    path.read(ids, 0) if length > 1 else None


def seconds(run: Callable[[], object], times: int) -> float:
    """The median duration; results come to the host, so each run has ended when it returns."""
    run()
    took = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return float(np.median(took))


def bandwidth(device: str) -> float:
    """Bytes a second of a large copy, read and written, the best of some."""
    count = (1 << 30) if device == "cuda" else (1 << 27)
    source = torch.ones(count // 4, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * count / (time.perf_counter() - start))
    return best


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """What is in use on the GPU now, or was at most by PyTorch, whichever is more."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return round(max(total - free, torch.cuda.max_memory_allocated()) / 2**30, 2)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU (dry run)"


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not available"
    return found


def table(facts: dict[str, Any], results: list[Result]) -> str:
    labels = list(dict.fromkeys(label for result in results for label in result.decode_ms))
    lines = [
        f"{facts['device']}, {facts['shape']}, {facts['date']}",
        f"copy bandwidth {facts['bandwidth_gb_s']} GB/s; error: of the largest logit, against eager float32",
        "",
        "| path | error | same tokens | prefill tok/s | "
        + " | ".join(f"decode ms @{label} (share)" for label in labels) + " | peak GiB |",
        "|---|---:|---:|---:|" + "---:|" * (len(labels) + 1),
    ]  # fmt: skip
    for result in results:
        if result.available != "yes":
            lines.append(f"| {result.path} | {result.available} |" + " |" * (len(labels) + 3))
            continue
        verdict = "" if result.passed else " FAILED"
        cells = [
            f"{result.decode_ms[label]:.2f} ({result.bandwidth_share[label]:.0%})"
            if label in result.decode_ms
            else ""
            for label in labels
        ]
        lines.append(
            f"| {result.path}, {result.dtype} | {result.error:.1e}{verdict} | {result.same_tokens:.0%} | "
            f"{result.prefill_tok_s} | {' | '.join(cells)} | {result.peak_gib or ''} |"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
