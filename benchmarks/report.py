"""Results as Markdown: medians, with the smallest and the largest sample behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rounds import Outcome

GIB, GB = 2**30, 1e9
QUIET_CORES = 0.2


@dataclass(frozen=True)
class Column:
    """One figure of every sample.

    Attributes:
        title: With its unit.
        key: In the sample.
        unit: What the sample's number is divided by.
        digits: After the point.
    """

    title: str
    key: str
    unit: float = 1
    digits: int = 1


PEAK = Column("peak private GiB", "peak_private_bytes", GIB, 2)
CPP = (
    Column("start to first token, s", "first_token_s", digits=3),
    Column("load, s", "load_s", digits=3),
    Column("prefill, tok/s", "prefill_tokens_per_s", digits=0),
    Column("decode, tok/s", "decode_tokens_per_s", digits=1),
    Column("peak RSS, MiB", "peak_rss_bytes", 2**20, 0),
    Column("peak private, MiB", "peak_private_bytes", 2**20, 0),
)
ROWS = tuple(
    Column(f"{n} {'row' if n == 1 else 'rows'}, tok/s", f"rows_{n}_tokens_per_s", digits=1)
    for n in (1, 2, 4, 8)
)
COLUMNS = {
    "conversion": (Column("seconds", "seconds"), PEAK, Column("output GB", "output_bytes", GB, 2)),
    "layouts": (Column("seconds", "seconds"), PEAK, Column("output GB", "output_bytes", GB, 2)),
    "sparse": (PEAK, Column("output GB", "output_bytes", GB, 2), Column("seconds, no disk", "seconds")),
    "speed": (
        Column("start to first token, s", "first_token_s", digits=2),
        Column("load, s", "load_s", digits=2),
        Column("prefill-512, tok/s", "prefill_tokens_per_s"),
        Column("decode, tok/s", "decode_tokens_per_s", digits=2),
        PEAK,
    ),
    "quantizing": (Column("seconds", "seconds"), PEAK, Column("output GB", "output_bytes", GB, 2)),
    "quantized": (
        Column("start to first token, s", "first_token_s", digits=2),
        Column("load, s", "load_s", digits=2),
        Column("prefill-512, tok/s", "prefill_tokens_per_s", digits=0),
        Column("decode, tok/s", "decode_tokens_per_s", digits=1),
        Column("MB a token", "step_bytes", 1e6, 0),
        Column("of bandwidth, %", "bandwidth_percent", digits=0),
        PEAK,
    ),
    "cpp demo": CPP,
    "cpp int4": CPP,
    "overhead": (
        Column("ours, ms a token", "ours_ms", digits=2),
        Column("bare session, ms a token", "bare_ms", digits=2),
        Column("overhead, %", "overhead_percent"),
    ),
    "batch": ROWS,
    "rows": ROWS,
    "lookup": (
        Column("repeats itself: plain, tok/s", "repeats_plain"),
        Column("with lookup", "repeats_lookup"),
        Column("never repeats: plain, tok/s", "differs_plain"),
        Column("with lookup", "differs_lookup"),
    ),
    "chat": (
        Column("time to first token, s", "first_token_s", digits=3),
        Column("prompt, tokens", "prompt_tokens", digits=0),
        Column("of them read", "read_tokens", digits=0),
    ),
    "verification": (Column("seconds", "seconds"), PEAK),
    "tracing": (
        Column("build the graph, s", "trace_s", digits=2),
        Column("imports, s", "import_s", digits=2),
        PEAK,
        Column("nodes", "nodes", digits=0),
    ),
}
TITLES = {
    "conversion": "Export of {shape} in bfloat16",
    "speed": "Generating with {shape} in float32, {threads} threads, {prompt} + {new} tokens",
    "quantizing": "Quantizing {shape} in bfloat16",
    "quantized": "Generating with {shape} quantized, {threads} threads, {prompt} + {new} tokens",
    "cpp demo": "The demo, {threads} threads, {prompt} + {new} tokens; prefill of 256",
    "cpp int4": "{shape} in int4, {threads} threads, {prompt} + {new} tokens; prefill of 512",
    "overhead": "A token of {shape} in float32, {threads} threads: our runtime beside the bare session",
    "batch": "Batches with {shape} in float32, {threads} threads, prompts of 17 to 64 tokens + {row_new}",
    "rows": "Batches with {shape} quantized, {threads} threads, prompts of 17 to 64 tokens + {row_new}",
    "tracing": "Building the graph, without weights",
    "lookup": "Prompt lookup with {shape} in int4, {threads} threads",
    "chat": "Tenth turn of a chat with {shape} in float32, {threads} threads",
    "layouts": "Meta's own files, float16",
    "sparse": "Meta's own files, float16, all of them holes",
    "verification": "Verifying a linked bundle of {shape}",
}


def markdown(results: Mapping[str, Any], outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
    """The page that a run prints and leaves in ``results``.

    Args:
        results: Machine, versions and settings, as in the JSON file.
        outcomes: By benchmark, then by candidate.
    """
    machine, settings = results["machine"], results["settings"]
    blocks = [
        f"# Benchmarks of {machine['date'][:10]}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"Python {machine['python']}. {settings['command']}. Medians of {settings['repeats']} interleaved "
        "rounds, smallest to largest in brackets.",
        conditions(outcomes, settings["threads"]),
    ]
    for name, found in outcomes.items():
        blocks += [f"## {TITLES[name].format(**settings)}", table(COLUMNS[name], found)]
        if name == "speed":
            blocks.append(same_tokens(results.get("equal_tokens", {}), settings["new"]))
        if name == "cpp int4":
            blocks.append(shown_sizes(results.get("sizes", {})))
        if name == "batch":
            blocks.append(same_rows(results.get("equal_rows", {})))
    blocks += ["## Versions", versions(results)]
    return "\n\n".join(blocks) + "\n"


def table(columns: Sequence[Column], outcomes: Mapping[str, Outcome]) -> str:
    """One row a candidate; one that was not measured keeps its row and says why."""
    rows = [["", *(column.title for column in columns)], ["---", *("---:" for _ in columns)]]
    for name, outcome in outcomes.items():
        if outcome.samples:
            cells = [cell(column, outcome) for column in columns]
            label = f"{name} ({len(outcome.failures)} rounds failed)" if outcome.failures else name
        else:
            reason = (outcome.failures or ["not measured"])[0].replace("|", "/")
            label, cells = name, [reason, *("" for _ in columns[1:])]
        rows.append([label, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(column: Column, outcome: Outcome) -> str:
    """Median and spread of one figure."""
    median, (low, high) = outcome.median(column.key), outcome.spread(column.key) or (0.0, 0.0)
    shown = [f"{value / column.unit:.{column.digits}f}" for value in (median or 0.0, low, high)]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def conditions(outcomes: Mapping[str, Mapping[str, Outcome]], threads: int) -> str:
    """What else the machine was doing while the samples were taken."""
    samples = [s for found in outcomes.values() for outcome in found.values() for s in outcome.samples]
    if not samples:
        return "Nothing was measured."
    others = sorted(sample["others_cores"] for sample in samples)
    reading = sorted(sample["read_bytes_per_s"] / GB for sample in samples)
    busy = sum(share > QUIET_CORES for share in others)
    state = f"**Busy during {busy} of {len(others)} samples**" if busy else "The machine was quiet"
    median, most = others[len(others) // 2], others[-1]
    return (
        f"{state}: all else used {median:.2f} cores in the median, {most:.2f} at most. "
        f"{threads} threads read {reading[0]:.0f} to {reading[-1]:.0f} GB/s from memory between the samples."
    )


def same_tokens(equal: Mapping[str, int], new_tokens: int) -> str:
    """Whether all runtimes generated the same, which they must to have done the same work."""
    parted = {name: count for name, count in equal.items() if count < new_tokens}
    if not parted:
        return f"All generated the same {new_tokens} greedy tokens."
    return f"Greedy tokens parted: {'; '.join(f'{name} after {n}' for name, n in parted.items())}."


def same_rows(equal: Mapping[str, tuple[int, int]]) -> str:
    """Whether the rows of a batch are what the prompts get alone, which a padding that leaks would change."""
    if not equal:
        return "Whether rows are what the prompts get alone is not known."
    counts = "; ".join(f"{name}: {same} of {rows}" for name, (same, rows) in equal.items())
    return f"Rows of the largest batch with exactly the tokens that our runtime generates alone: {counts}."


def shown_sizes(sizes: Mapping[str, int]) -> str:
    """What a program ships; ours stripped."""
    return "Sizes: " + "; ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items()) + "."


def versions(results: Mapping[str, Any]) -> str:
    """Ours, then each peer's environment."""
    groups = {"ours": results["machine"]["versions"], **results["peers"]}
    lines = [
        f"- {name}: {', '.join(f'{package} {number}' for package, number in found.items())}"
        for name, found in groups.items()
    ]
    return "\n".join(lines)
