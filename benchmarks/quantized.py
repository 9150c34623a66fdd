"""int8, int4 and bfloat16: exports of one bfloat16 checkpoint, and generating with them, ours and peers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import environments
import peers
from batch import ask
from checkpoints import Shape
from conversion import Export, ours, remove, run_export, size
from environments import InstallError, python
from exports import Exported, Exports
from measure import last_error
from rounds import Candidate, Outcome, Sample, interleave
from speed import Runtime, generate

from llama_runtime import bench
from llama_runtime.manifest import MANIFEST_NAME, read_manifest

WEIGHT_FILES = {".gguf", ".data", ".bin"}
LLAMA_CPP_RUNTIME = (peers.LLAMA_CPP,)  # no wheel on PyPI: built here, for this processor
OPENVINO = ("openvino-genai", "optimum-intel[openvino]")


OURS = {
    "ours, int4 block 32, int8 cache": ("--precision", "int4", "--cache", "int8"),
    "ours, bfloat16": ("--weights", "link"),
}


@dataclass(frozen=True)
class Quantized:
    """A quantized export and what runs it.

    Attributes:
        name: As the tables show it.
        export: How it is made.
        interpreter: Of the script that runs it.
        runtime: ``workers`` holds its ``generate_`` and, for most, its ``batch_`` script.
        embedding_bits: Of each value of the embedding table in a peer's files.
        cache_bits: Of each value of a peer's cache.
    """

    name: str
    export: Export
    interpreter: Path
    runtime: str
    embedding_bits: float = 0
    cache_bits: float = 32

    def step_bytes(self, folder: Path, shape: Shape, positions: int) -> float:
        """What a step of decoding must read: its weights without the embedding table, and the cache."""
        if (folder / MANIFEST_NAME).exists():
            return bench.step_bytes(read_manifest(folder), positions) or 0
        files = [file for file in folder.rglob("*") if file.suffix in WEIGHT_FILES]
        table = shape.vocab_size * shape.hidden_size * self.embedding_bits / 8
        cached = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * positions
        return sum(file.stat().st_size for file in files) - table + cached * self.cache_bits / 8


def candidates(
    cache: Path, without: frozenset[str], these: str = ""
) -> tuple[list[Quantized], dict[str, str]]:
    """Everything that is measured, and why the rest cannot be.

    Args:
        cache: Holds the peers' environments.
        without: Names of peers to leave out.
        these: A regular expression; a candidate whose name it is not found in is left out.
    """
    here = Path(sys.executable)
    found = []
    for precision, block in (("int4", "32"), ("int4", "128"), ("int8", "32"), ("int8", "128")):
        name = f"ours, {precision} block {block}"
        export = ours(name, "--precision", precision, "--block-size", block, "--no-verify")
        found.append(Quantized(name, export, here, "ours"))
        if block == "32":
            plain = f"{name}, ONNX Runtime's kernels"
            found.append(Quantized(plain, export, here, "ours_plain"))
    for name, options in OURS.items():
        found.append(Quantized(name, ours(name, *options, "--no-verify"), here, "ours"))
    missing: dict[str, str] = {}
    makers: dict[str, Callable[[Path], list[Quantized]]] = {
        "onnxruntime-genai": _genai,
        "llama.cpp": llama_cpp,
        "openvino": _openvino,
    }
    for name, make in makers.items():
        if name in without:
            missing[name] = "left out by --without"
            continue
        try:
            found += make(cache)
        except InstallError as error:
            missing[name] = f"cannot be installed: {error}"
    return [candidate for candidate in found if re.search(these, candidate.name)], missing


def _genai(cache: Path) -> list[Quantized]:
    env = peers.install(peers.GENAI, cache)

    def export(precision: str) -> Export:
        def command(checkpoint: Path, output: Path) -> list[str | Path]:
            builder = [python(env), "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", output]
            options = ["-p", precision, "-e", "cpu", "-c", output.with_suffix(".cache")]
            return [*builder, *options, "--extra_options", "int4_block_size=32", "int4_accuracy_level=4"]

        return Export(f"onnxruntime-genai, {precision}", command)

    made = [export("int4"), export("int8")]
    return [Quantized(e.name, e, python(env), "genai", embedding_bits=32) for e in made]


def llama_cpp(cache: Path) -> list[Quantized]:
    """llama.cpp's exports and what runs them; InstallError where it cannot be had."""
    converter = peers.install(peers.LLAMACPP, cache)
    env = environments.make("llama-cpp-python", LLAMA_CPP_RUNTIME, cache, torch=False)

    def export(kind: str) -> Export:
        def command(checkpoint: Path, output: Path) -> list[str | Path]:
            script = peers.WORKERS / "quantize_llama_cpp.py"
            convert = converter / "llama.cpp" / "convert_hf_to_gguf.py"
            return [python(env), script, python(converter), convert, checkpoint, output, kind]

        return Export(f"llama.cpp, {kind}", command)

    kinds = {"Q4_0": 4.5, "Q4_K_M": 4.5, "Q8_0": 8.5, "BF16": 16}
    return [
        Quantized(e.name, e, python(env), "llama_cpp", embedding_bits=bits, cache_bits=16)
        for e, bits in ((export(kind), bits) for kind, bits in kinds.items())
    ]


def _without_torchvision(env: Path) -> None:
    """The one that optimum-intel brings is for another torch, and transformers stumbles over it."""
    environments.pip(env, ["uninstall", "--yes", "torchvision"])


def _openvino(cache: Path) -> list[Quantized]:
    env = environments.make("openvino", OPENVINO, cache, extra=("no torchvision", _without_torchvision))

    def export(precision: str) -> Export:
        def command(checkpoint: Path, output: Path) -> list[str | Path]:
            cli = [env / "bin" / "optimum-cli", "export", "openvino", "--model", checkpoint]
            return [*cli, "--task", "text-generation-with-past", "--weight-format", precision, output]

        return Export(f"OpenVINO GenAI, {precision}", command)

    made = [export("int4"), export("int8")]
    return [Quantized(e.name, e, python(env), "openvino", embedding_bits=8, cache_bits=8) for e in made]


def bench_exports(checkpoint: Path, work: Path, found: list[Quantized], repeats: int) -> dict[str, Outcome]:
    """Export each in turn, ``repeats`` times; outputs are removed at once."""
    output = work / "quantized"

    def once(candidate: Quantized) -> Sample:
        measured = run_export(candidate.export, checkpoint, output)
        written = size(output)
        remove(output)
        if measured.returncode:
            raise RuntimeError(last_error(measured))
        return {"seconds": measured.seconds, "output_bytes": written} | measured.conditions()

    every = {c.export.name: c for c in found}
    return interleave([Candidate(name, lambda c=c: once(c)) for name, c in every.items()], repeats)


def bench_speed(
    shape: Shape,
    checkpoint: Path,
    exports: Exports,
    found: list[Quantized],
    repeats: int,
    new_tokens: int,
    *,
    threads: int,
    prompt_tokens: int,
) -> dict[str, Outcome]:
    """Generate with each in turn, every time in a process of its own; texts may differ, as the weights do."""

    def once(candidate: Quantized, exported: Exported) -> Sample:
        script = f"generate_{candidate.runtime}.py"
        runtime = Runtime(candidate.name, candidate.export, checkpoint, candidate.interpreter, script)
        folder = exported.require()
        sample = generate(
            *(runtime, folder, shape.vocab_size, new_tokens), threads=threads, prompt_tokens=prompt_tokens
        )[1]
        positions = prompt_tokens + new_tokens // 2
        return sample | {"step_bytes": candidate.step_bytes(folder, shape, positions)}

    outcomes = _interleave_exported(found, exports, checkpoint, once, repeats, threads)
    for sample in (sample for outcome in outcomes.values() for sample in outcome.samples):
        read = sample["step_bytes"] * sample["decode_tokens_per_s"]
        sample["bandwidth_percent"] = 100 * read / sample["read_bytes_per_s"]
    return outcomes


def bench_rows(
    shape: Shape,
    checkpoint: Path,
    exports: Exports,
    found: list[Quantized],
    repeats: int,
    new_tokens: int,
    *,
    threads: int,
) -> dict[str, Outcome]:
    """Batches of several rows, with each that has a script for them."""

    def once(candidate: Quantized, exported: Exported) -> Sample:
        question = [threads, new_tokens, shape.vocab_size, "together"]
        script = f"batch_{candidate.runtime}.py"
        answer = ask(candidate.interpreter, script, exported.require(), *map(str, question))
        del answer["tokens"]
        return answer

    able = [c for c in found if (peers.WORKERS / f"batch_{c.runtime}.py").exists()]
    return _interleave_exported(able, exports, checkpoint, once, repeats, threads)


def _interleave_exported(
    found: list[Quantized],
    exports: Exports,
    checkpoint: Path,
    once: Callable[[Quantized, Exported], Sample],
    repeats: int,
    threads: int,
) -> dict[str, Outcome]:
    """Export what is not there yet, then ``once`` with each in turn."""
    made = [(c, exports.make(c.export.name, c.export, checkpoint)) for c in found]
    return interleave([Candidate(c.name, lambda c=c, e=e: once(c, e)) for c, e in made], repeats, threads)
