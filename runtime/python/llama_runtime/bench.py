"""How fast a bundle is on this machine, beside what its memory allows.

Everything goes through ``Generator``, as a program would use it. A step of decoding must read every weight
but the embedding table, and the cache of all positions so far: these bytes, over the time of a step, are a
share of the bandwidth that the same threads reach when they only read.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llama_runtime.bandwidth import read_bandwidth
from llama_runtime.cache import position_bytes
from llama_runtime.cores import available_cores
from llama_runtime.errors import OptionError, SessionError
from llama_runtime.generate import Generator, load
from llama_runtime.kernels import level_of
from llama_runtime.manifest import Manifest, read_manifest
from llama_runtime.options import SamplingOptions

SEED = 1
_SAMPLE_S = 0.02
_PROFILED = 16  # tokens
_STATUS = Path("/proc/self/status")
_FIRST_TOKEN = """
import sys, time, llama_runtime
generator = llama_runtime.load(sys.argv[1], threads=int(sys.argv[3]))
options = llama_runtime.SamplingOptions(max_new_tokens=1, ignore_eos=True)
next(iter(generator.stream([int(token) for token in sys.argv[2].split(",")], options)))
print(time.monotonic())
"""


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some samples."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class BenchReport:
    """What was measured; None is not measured.

    Attributes:
        bundle: The folder.
        precision: Of its weights.
        attention: Its attention path.
        kernels: The instructions of our own operators; None where ONNX Runtime's own ran.
        threads: Of the arithmetic.
        prompt_tokens: Read before the first decoded token.
        new_tokens: Decoded in each repeat, the first one apart.
        repeats: How often everything was measured.
        load_s: From nothing to a generator, in this process.
        start_to_first_token_s: From the start of a process to the first token, imports included.
        prefill_tokens_per_s: Reading a prompt of ``prefill_tokens``.
        prefill_tokens: As many as were asked for, or as the model has positions.
        decode_ms: One token.
        decode_tokens_per_s: 1000 over its median.
        step_bytes: What one step of decoding reads, with the cache as it is in the middle of the run.
        read_bytes_per_s: What the same threads read from memory, the most seen between the repeats.
        bandwidth_share: Of that, what decoding reaches.
        peak_private_bytes: Of this process; Linux alone tells.
        token_ms: The median of each decoded token, in order.
        profile: Operator to milliseconds of one decoded token, the costliest first; where asked for.
    """

    bundle: str
    precision: str
    attention: str
    kernels: str | None
    threads: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    load_s: float
    start_to_first_token_s: Spread
    prefill_tokens_per_s: Spread
    prefill_tokens: int
    decode_ms: Spread
    decode_tokens_per_s: float
    step_bytes: int | None
    read_bytes_per_s: float
    bandwidth_share: float | None
    peak_private_bytes: int | None
    token_ms: tuple[float, ...]
    profile: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def bench(
    bundle: str | Path,
    *,
    threads: int | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    prefill_tokens: int = 512,
    repeats: int = 5,
    profile: bool = False,
    advance: Callable[[str], None] = lambda doing: None,
) -> BenchReport:
    """Measure a bundle that generates.

    Args:
        bundle: Its folder.
        threads: For the arithmetic; None is every physical core this process may use.
        prompt_tokens: Read before decoding.
        new_tokens: Decoded, besides the first.
        prefill_tokens: Of the prompt whose reading is measured; fewer where the model has fewer positions.
        repeats: How often.
        profile: Run once more with ONNX Runtime's profiler.
        advance: Told what is measured next.

    Raises:
        LlamaRuntimeError: The bundle cannot be opened, does not generate, or has too few positions.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder)
    limit = manifest.limits.max_position_embeddings
    _ = manifest.kv_cache  # which a bundle of another task has not
    if min(prompt_tokens, new_tokens, prefill_tokens, repeats) < 1:
        raise OptionError("prompt, new and prefill tokens and repeats are counts, each needs at least 1")
    if prompt_tokens + new_tokens + 1 > limit:
        raise OptionError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones, the model has {limit} positions",
            "ask for fewer",
        )
    cores = threads or available_cores()
    draw = np.random.default_rng(SEED)
    prefill_tokens = min(prefill_tokens, limit - 1)

    def prompt(count: int) -> list[int]:
        return [int(token) for token in draw.integers(0, manifest.limits.vocab_size, count)]

    advance("start to first token")
    starts = [_start_to_first_token(folder, prompt(prompt_tokens), cores) for _ in range(min(repeats, 3))]
    with _PeakMemory() as memory:
        began = time.perf_counter()
        generator = load(folder, threads=threads)
        load_s = time.perf_counter() - began
        _prefill_s(generator, prompt(prefill_tokens))  # buffers and threads are made here
        reads, prefills, decodes = [memory.read(cores)], list[float](), list[list[float]]()
        for number in range(repeats):
            advance(f"round {number + 1} of {repeats}")
            prefills.append(prefill_tokens / _prefill_s(generator, prompt(prefill_tokens)))
            decodes.append(_decode_ms(generator, prompt(prompt_tokens), new_tokens))
            reads.append(memory.read(cores))
    decode_ms, step = _decode_spread(decodes), step_bytes(manifest, prompt_tokens + new_tokens // 2)
    return BenchReport(
        bundle=str(bundle),
        precision=manifest.precision,
        attention=manifest.attention,
        kernels=level_of(generator.session.kernels),
        threads=cores,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        load_s=load_s,
        start_to_first_token_s=_spread(starts),
        prefill_tokens_per_s=_spread(prefills),
        prefill_tokens=prefill_tokens,
        decode_ms=decode_ms,
        decode_tokens_per_s=1e3 / decode_ms.median,
        step_bytes=step,
        read_bytes_per_s=max(reads),
        bandwidth_share=None if step is None else step / (decode_ms.median * 1e-3) / max(reads),
        peak_private_bytes=memory.peak,
        token_ms=tuple(statistics.median(column) for column in zip(*decodes, strict=True)),
        profile=_profile(folder, manifest, threads, prompt(prompt_tokens)) if profile else None,
    )


def _decode_spread(rounds: list[list[float]]) -> Spread:
    """The median of the rounds' medians, and the fastest and slowest token of all."""
    median = statistics.median(statistics.median(row) for row in rounds)
    return Spread(median, min(map(min, rounds)), max(map(max, rounds)))


def step_bytes(manifest: Manifest, positions: int) -> int | None:
    """What a step of decoding reads behind so many positions; None where the bundle does not tell."""
    if manifest.step_weight_bytes is None:
        return None
    return manifest.step_weight_bytes + positions * position_bytes(manifest.kv_cache)


def _start_to_first_token(folder: Path, tokens: Sequence[int], threads: int) -> float:
    command = [sys.executable, "-c", _FIRST_TOKEN, str(folder), ",".join(map(str, tokens)), str(threads)]
    began = time.monotonic()  # one clock for all processes of a machine
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SessionError(f"a new process cannot run {folder}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout) - began


def _prefill_s(generator: Generator, tokens: list[int]) -> float:
    began = time.perf_counter()
    generator.generate(tokens, SamplingOptions(max_new_tokens=1, ignore_eos=True))
    return time.perf_counter() - began


def _decode_ms(generator: Generator, tokens: list[int], new_tokens: int) -> list[float]:
    moments = []
    for _ in generator.stream(tokens, SamplingOptions(max_new_tokens=new_tokens + 1, ignore_eos=True)):
        moments.append(time.perf_counter())
    return [1e3 * (after - before) for before, after in pairwise(moments)]


def _profile(folder: Path, manifest: Manifest, threads: int | None, tokens: list[int]) -> dict[str, float]:
    """Milliseconds of each operator in one decoded token, from ONNX Runtime's own profiler."""
    from llama_runtime.opening import open_session

    session = open_session(folder, manifest, threads=threads, profile=True)
    cache = session.new_cache(capacity=len(tokens) + _PROFILED)
    session.prefill(np.array([tokens], np.int64), cache)
    for token in tokens[:1] * _PROFILED:
        session.decode(np.array([token], np.int64), cache)
    events = json.loads(session.end_profiling())
    runs = [event for event in events if event.get("name") == "model_run"][-_PROFILED:]
    first, found = runs[0]["ts"], dict[str, float]()
    for event in events:
        if event.get("cat") == "Node" and event["ts"] >= first and event["name"].endswith("_kernel_time"):
            name = event["args"]["op_name"]
            found[name] = found.get(name, 0.0) + event["dur"] / 1e3 / _PROFILED
    found["outside of operators"] = sum(run["dur"] for run in runs) / 1e3 / _PROFILED - sum(found.values())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


class _PeakMemory:
    """The most private memory of this process, sampled by a thread; None where the system does not tell."""

    def __init__(self) -> None:
        self.peak: int | None = None
        self._counting = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:
        if _STATUS.exists():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
            self._look()

    def read(self, threads: int) -> float:
        """The bandwidth; what is read is not counted."""
        self._counting = False
        try:
            return read_bandwidth(threads)
        finally:
            self._counting = True

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._look()

    def _look(self) -> None:
        counting = self._counting
        line = next((li for li in _STATUS.read_text().splitlines() if li.startswith("RssAnon")), "")
        if line and counting and self._counting:
            self.peak = max(self.peak or 0, int(line.split()[1]) << 10)


def _spread(samples: Sequence[float]) -> Spread:
    return Spread(statistics.median(samples), min(samples), max(samples))
