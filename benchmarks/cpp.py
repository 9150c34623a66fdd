"""The C++ runtime beside Python's and llama.cpp: the demo, and one int4 export of a larger shape.

The C++ program is ``workers/generate_cpp.cpp``, linked with the static library that is built here; ONNX
Runtime's library is the one that Python has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import peers
import quantized
from checkpoints import Shape
from conversion import Export, ours, peer_export
from environments import InstallError
from exports import Exported, Exports
from machine import settle
from measure import last_error, measure
from rounds import THREADS, Candidate, Outcome, Sample, interleave
from speed import PROMPT_TOKENS
from workers.protocol import PREFILL_REPEATS, Question

from llama_runtime.kernels import LIBRARY, VARIABLE

REPO = Path(__file__).parents[1]
DEMO, DEMO_VOCAB, DEMO_PREFILL = REPO / "recipes/tiny/checkpoint", 1024, 256
ONNXRUNTIME = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
TOUCHED_BYTES = 1500 << 20
PLAIN = {VARIABLE: "off"}


@dataclass(frozen=True)
class Runner:
    """A program that generates with an export.

    Attributes:
        name: As the tables show it.
        export: What it runs.
        checkpoint: Exported from it.
        program: The command, without the question.
        env: Added to the environment.
    """

    name: str
    export: Export
    checkpoint: Path
    program: tuple[Path, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def bench(
    shape: Shape, bfloat16: Path, work: Path, exports: Exports, cache: Path, repeats: int, new_tokens: int
) -> tuple[dict[str, dict[str, Outcome]], dict[str, int]]:
    """Build the C++ program, export, then run each in turn, every time in a process of its own.

    Args:
        shape: Of the larger checkpoint.
        bfloat16: That checkpoint.
        work: For the build.
        exports: Shared with the other benchmarks.
        cache: Holds llama.cpp's environments.
        repeats: Rounds.
        new_tokens: Generated after the prompt of 128.

    Returns:
        Outcomes of the demo and of the larger shape, and the bytes of each program and library.
    """
    build = build_program(work / "cpp")
    (work / "prompts").mkdir(exist_ok=True)
    outcomes = {}
    demo, larger = runners(bfloat16, build, cache)
    for name, found, vocab, prefill in (
        ("cpp demo", demo, DEMO_VOCAB, DEMO_PREFILL),
        ("cpp int4", larger, shape.vocab_size, 512),
    ):
        made = [(r, exports.make(r.export.name, r.export, r.checkpoint)) for r in found[0]]
        prompts = work / "prompts" / name.replace(" ", "-")
        prompts.write_text(prompt_lines(vocab, prefill))
        env = {"BENCHMARK_PROMPTS": str(prompts), "BENCHMARK_PREFILL": str(prefill)}
        turns = [
            Candidate(r.name, lambda r=r, e=e, env=env, v=vocab: once(r, e, v, new_tokens, env))
            for r, e in made
        ]
        rows = {peer: Outcome(failures=[reason]) for peer, reason in found[1].items()}
        outcomes[name] = interleave(turns, repeats) | rows
    return outcomes, sizes(build, cache)


def runners(
    bfloat16: Path, build: Path, cache: Path
) -> tuple[tuple[list[Runner], dict[str, str]], tuple[list[Runner], dict[str, str]]]:
    """What runs the demo, and the larger shape; each with the peers that cannot, and why."""
    here, program = Path(sys.executable), build / "generate_cpp"
    cpp_env = {"LLAMA_RUNTIME_ONNXRUNTIME": str(ONNXRUNTIME)}
    with_kernels = cpp_env | ({"LLAMA_RUNTIME_KERNELS": str(LIBRARY)} if LIBRARY.exists() else {})
    python = (here, peers.WORKERS / "generate_ours.py")
    plain = ours("ours, demo", "--no-verify")
    int4 = ours("ours, int4 block 32", "--precision", "int4", "--no-verify")
    demo = [
        Runner("ours, C++", plain, DEMO, (program,), with_kernels),
        Runner("ours, Python", plain, DEMO, python),
    ]
    larger = [
        Runner("ours, C++, ONNX Runtime's kernels", int4, bfloat16, (program,), cpp_env | PLAIN),
        Runner("ours, Python, ONNX Runtime's kernels", int4, bfloat16, python, PLAIN),
    ]
    missing: tuple[dict[str, str], dict[str, str]] = ({}, {})
    if LIBRARY.exists():
        larger = [
            Runner("ours, C++", int4, bfloat16, (program,), with_kernels),
            Runner("ours, Python", int4, bfloat16, python),
            *larger,
        ]
    else:
        for rows in missing:
            rows["ours, with our kernels"] = "not built: make kernels"
    try:
        q4 = next(q for q in quantized.llama_cpp(cache) if q.name.endswith("Q4_0"))
        script = (q4.interpreter, peers.WORKERS / q4.script)
        converter = peers.install(peers.LLAMACPP, cache)
        wide = peer_export(peers.LLAMACPP, converter)
        demo.append(Runner("llama.cpp, F32", wide, DEMO, script))
        larger.append(Runner(q4.name, q4.export, bfloat16, script))
    except InstallError as error:
        for rows in missing:
            rows["llama.cpp"] = f"cannot be installed: {error}"
    return (demo, missing[0]), (larger, missing[1])


def prompt_lines(vocab_size: int, prefill_tokens: int) -> str:
    """The prompts of ``protocol``, a line each."""
    question = Question("", THREADS, PROMPT_TOKENS, 0, vocab_size)
    prompts = [question.tokens(PROMPT_TOKENS, seed=1)]
    prompts += [question.tokens(prefill_tokens, seed=100 + repeat) for repeat in range(PREFILL_REPEATS)]
    return "".join(" ".join(map(str, prompt)) + "\n" for prompt in prompts)


def once(
    runner: Runner, exported: Exported, vocab_size: int, new_tokens: int, env: Mapping[str, str]
) -> Sample:
    """Run a program once; RuntimeError with its last error where it fails."""
    folder = exported.require()
    settle(folder)
    touch_memory()
    question = [folder, THREADS, PROMPT_TOKENS, new_tokens, vocab_size]
    command = [*runner.program, *map(str, question)]
    measured = measure(command, env={**peers.OFFLINE, **env, **runner.env})
    if measured.returncode:
        raise RuntimeError(last_error(measured))
    answer = json.loads(measured.stdout.splitlines()[-1])
    del answer["tokens"]
    return answer | measured.conditions() | {"peak_rss_bytes": measured.peak_rss_bytes}


def touch_memory() -> None:
    """Use and free as much memory as a program here needs, so that none pays for what others have left.

    In a virtual machine, pages that were given back must be found again: 0.6 s for 0.8 GB, for the first.
    """
    np.ones(TOUCHED_BYTES // 8)


def build_program(folder: Path) -> Path:
    """Build the library as it ships, and the program with it; returns where they are.

    Raises:
        SystemExit: With the compiler's last line.
    """
    source, home = REPO / "runtime/cpp", REPO / "build/onnxruntime"
    options = ["-DLLAMA_RUNTIME_TESTS=OFF", f"-DORT_HOME={home}"]
    library = ["-I", source / "include", folder / "libllama_runtime.a", "-ldl", "-lpthread"]
    worker = peers.WORKERS / "generate_cpp.cpp"
    for command in (
        [source / "fetch_onnxruntime.sh", home, sys.executable],
        ["cmake", "-S", source, "-B", folder, *options],
        ["cmake", "--build", folder, "--parallel", str(os.cpu_count())],
        ["cmake", "-S", source, "-B", folder / "shared", *options, "-DBUILD_SHARED_LIBS=ON"],
        ["cmake", "--build", folder / "shared", "--parallel", str(os.cpu_count())],
        ["c++", "-std=c++17", "-O2", worker, *library, "-o", folder / "generate_cpp"],
    ):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout).splitlines()
            sys.exit(f"error: {command[0]}: {said[-1] if said else done.returncode}")
    return folder


def sizes(build: Path, cache: Path) -> dict[str, int]:
    """Bytes of what a program ships: ours stripped, the libraries beside it as they come."""
    found = {}
    for name, path in (
        ("llama-run", build / "llama-run"),
        ("the smallest C program, linked statically", _hello(build)),
        ("libllama_runtime.so", build / "shared/libllama_runtime.so"),
    ):
        stripped = build / "stripped"
        subprocess.run(["strip", "-o", stripped, path], check=True)
        found[name] = stripped.stat().st_size
    found["libonnxruntime.so"] = ONNXRUNTIME.stat().st_size
    if LIBRARY.exists():
        found[LIBRARY.name] = LIBRARY.stat().st_size
    libraries = list((cache / "llama-cpp-python").glob("lib/python*/site-packages/llama_cpp/lib/*.so"))
    if libraries:
        found["llama.cpp: libllama.so and libggml*.so"] = _total(libraries)
    return found


def _hello(build: Path) -> Path:
    source, program = REPO / "runtime/cpp", build / "hello"
    libraries = [build / "libllama_runtime.a", "-ldl", "-lpthread", "-lstdc++", "-lm"]
    command = ["cc", "-O2", "-I", source / "include", source / "examples/hello.c", *libraries, "-o", program]
    subprocess.run([str(part) for part in command], check=True)
    return program


def _total(libraries: Sequence[Path]) -> int:
    wanted = [path for path in libraries if path.name.startswith(("libllama", "libggml"))]
    return sum(path.stat().st_size for path in wanted)
