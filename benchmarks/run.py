"""All benchmarks in one command: ``python benchmarks/run.py``; see README.md beside this file."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import batch
import chat
import conversion
import cpp
import layouts
import lookup
import machine
import peers
import quantized
import speed
import tracing
import verification
from checkpoints import SHAPES, make_checkpoint
from environments import CACHE, InstallError
from exports import Exports
from report import markdown
from rounds import Outcome

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = (
    "tracing",
    "conversion",
    "speed",
    "batch",
    "chat",
    "layouts",
    "sparse",
    "verification",
    "quantizing",
    "quantized",
    "rows",
    "lookup",
    "cpp",
)
NEED_PEERS = {"conversion", "speed", "batch"}
NEEDED_GB = 32

Outcomes = dict[str, dict[str, Outcome]]


def main() -> None:
    options = parse(sys.argv[1:])
    work = Path(tempfile.mkdtemp(prefix="llama-export-bench-", dir=options.work))
    try:
        free = shutil.disk_usage(work).free / 1e9
        if free < NEEDED_GB and options.shape != "tiny":
            sys.exit(f"error: {options.work} has {free:.0f} GB free, the exports need {NEEDED_GB}\n"
                     "hint: name another folder with --work")  # fmt: skip
        results, outcomes = bench(options, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write(results, outcomes, options.name)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py", description=__doc__)
    add = parser.add_argument
    add("--only", default=",".join(BENCHMARKS), help="some of: %(default)s")
    add("--repeats", type=int, help="rounds; default 5, with --quick 1")
    add("--quick", action="store_true", help="one round, few tokens: shows that everything runs")
    add("--shape", choices=SHAPES, default="TinyLlama-1.1B", help="of the checkpoint; default %(default)s")
    add("--work", type=Path, help="a disk with 32 GB for the exports, removed at the end; default in --cache")
    add("--cache", type=Path, default=CACHE, help="for the peers' environments; default %(default)s")
    add("--these", default="", help="of the quantized exports, those whose name has this regular expression")
    add("--threads", type=int, default=speed.THREADS, help="of quantized exports; default %(default)s")
    add("--prompt", type=int, default=speed.PROMPT_TOKENS, help="tokens of their prompt; default %(default)s")
    add("--without", default="", help="peers to leave out, by name; the tables say so")
    add("--name", default="all", help="of the results: results/<date>-<name>.json")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(BENCHMARKS):
        parser.error(f"--only {', '.join(unknown)}, known are {', '.join(BENCHMARKS)}")
    options.work = options.work or options.cache / "work"
    options.work.mkdir(parents=True, exist_ok=True)
    options.repeats = options.repeats or (1 if options.quick else 5)
    return options


def bench(options: argparse.Namespace, work: Path) -> tuple[dict[str, Any], Outcomes]:
    """Prepare, then measure in the order of ``BENCHMARKS``."""
    shape, new_tokens = SHAPES[options.shape], 9 if options.quick else 65
    row_tokens = 4 if options.quick else 32
    busy_before = machine.busy_processes(3.0)
    environments, missing = install(options) if NEED_PEERS & set(options.only) else ({}, {})
    settings = {
        "command": " ".join(["python benchmarks/run.py", *sys.argv[1:]]),
        "repeats": options.repeats,
        "shape": options.shape,
        "threads": options.threads,
        "prompt": options.prompt,
        "new": new_tokens,
        "row_new": row_tokens,
    }
    versions = {peer.name: peers.versions(peer, env) for peer, env in environments.items()}
    results: dict[str, Any] = {
        "machine": machine.describe() | {"busy_before": busy_before},
        "settings": settings,
        "peers": versions,
    }
    outcomes: Outcomes = {}
    exports = Exports(work)
    if "tracing" in options.only:
        outcomes["tracing"] = tracing.bench(work, options.repeats)
    if "conversion" in options.only:
        bfloat16 = make_checkpoint(work / "bfloat16", shape, "bfloat16")
        found = conversion.bench(bfloat16, work, environments, options.repeats)
        outcomes["conversion"] = found | not_installed(missing)
    if "speed" in options.only:
        bfloat16 = make_checkpoint(work / "bfloat16", shape, "bfloat16")
        float32 = make_checkpoint(work / "float32", shape, "float32")
        found, tokens = speed.bench(
            shape, bfloat16, float32, exports, environments, options.repeats, new_tokens
        )
        runnable = {peer: reason for peer, reason in missing.items() if peer.generate}
        outcomes["speed"] = found | not_installed(runnable)
        results["equal_tokens"] = speed.equal_tokens(tokens)
    if "batch" in options.only:
        bfloat16 = make_checkpoint(work / "bfloat16", shape, "bfloat16")
        overhead, found, rows = batch.bench(
            shape, bfloat16, exports, environments, options.repeats, row_tokens
        )
        runnable = {peer: reason for peer, reason in missing.items() if peer.batch}
        outcomes |= {"overhead": overhead, "batch": found | not_installed(runnable)}
        results["equal_rows"] = batch.equal_rows(rows)
    if "chat" in options.only:
        float32 = make_checkpoint(work / "float32", shape, "float32")
        outcomes["chat"] = chat.bench(float32, work, options.repeats)
    if "layouts" in options.only:
        outcomes["layouts"] = layouts.bench(work, options.repeats, options.shape)
    if "sparse" in options.only:
        outcomes["sparse"] = layouts.bench_sparse(work, options.shape)
    if "verification" in options.only:
        outcomes["verification"] = verification.bench(work, shape, options.repeats)
    if {"quantizing", "quantized", "rows"} & set(options.only):
        bfloat16 = make_checkpoint(work / "bfloat16", shape, "bfloat16")
        found, absent = quantized.candidates(
            options.cache, frozenset(options.without.split(",")), options.these
        )
        rows = {name: Outcome(failures=[reason]) for name, reason in absent.items()}
        if "quantizing" in options.only:
            outcomes["quantizing"] = quantized.bench_exports(bfloat16, work, found, options.repeats) | rows
        if "quantized" in options.only:
            made = quantized.bench_speed(
                *(shape, bfloat16, exports, found, options.repeats, new_tokens),
                threads=options.threads,
                prompt_tokens=options.prompt,
            )
            outcomes["quantized"] = made | rows
        if "rows" in options.only:
            outcomes["rows"] = rows | quantized.bench_rows(
                *(shape, bfloat16, exports, found, options.repeats, row_tokens), threads=options.threads
            )
    if "lookup" in options.only:
        outcomes["lookup"] = lookup.bench(shape, work, options.repeats, options.threads)
    if "cpp" in options.only:
        bfloat16 = make_checkpoint(work / "bfloat16", shape, "bfloat16")
        found, results["sizes"] = cpp.bench(
            shape, bfloat16, work, exports, options.cache, options.repeats, new_tokens
        )
        outcomes |= found
    return results, outcomes


def install(options: argparse.Namespace) -> tuple[dict[peers.Peer, Path], dict[peers.Peer, str]]:
    """The peers' environments, and why the others have none."""
    environments, missing = {}, {}
    for peer in peers.PEERS:
        if peer.name in options.without.split(","):
            missing[peer] = "left out with --without"
            continue
        try:
            environments[peer] = peers.install(peer, options.cache)
        except (InstallError, OSError) as error:
            missing[peer] = f"not installed: {error}"
            print(f"{peer.name}: {missing[peer]}", file=sys.stderr)
    return environments, missing


def not_installed(missing: dict[peers.Peer, str]) -> dict[str, Outcome]:
    """A row for each peer that could not run: nobody disappears from a table."""
    return {f"{peer.name}, fp32": Outcome(failures=[reason]) for peer, reason in missing.items()}


def write(results: dict[str, Any], outcomes: Outcomes, name: str) -> None:
    """Leave every sample as JSON, the summary as Markdown beside it, and print the summary."""
    RESULTS.mkdir(exist_ok=True)
    stem = f"{results['machine']['date'][:10]}-{name}"
    samples = {bench: {key: asdict(o) for key, o in found.items()} for bench, found in outcomes.items()}
    (RESULTS / f"{stem}.json").write_text(json.dumps(results | {"samples": samples}, indent=1) + "\n")
    page = markdown(results, outcomes)
    (RESULTS / f"{stem}.md").write_text(page)
    print(page)
    print(f"written to {RESULTS / stem}.json and .md", file=sys.stderr)


if __name__ == "__main__":
    main()
