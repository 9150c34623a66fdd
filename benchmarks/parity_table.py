"""Precision x attention path: what each bundle of a checkpoint measured against the reference, as Markdown.

python benchmarks/parity_table.py recipes/tiny/checkpoint [another checkpoint ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llama_export import pipeline
from llama_export.parity import Report
from llama_export.recipe import Recipe

PATHS = ("eager", "sdpa", "flash")
PRECISIONS = ("float32", "float16", "bfloat16")
LOGIT_RUNGS = (
    "prefill",
    "decode",
    "chunked prefill",
    "left-padded batch",
    "right-padded batch",
    "whole context",
)
HEAD = (
    "| checkpoint | precision | path | head | largest logit difference, stored weights | the same, unrounded "
    "| KL, nats | top-1 agreement | perplexity, change |\n|---|---|---|---|---:|---:|---:|---:|---:|"
)


def row(checkpoint: Path, precision: str, path: str, task: str, report: Report) -> str:
    """One bundle's line; a dash is what does not apply."""
    measured = {rung.name: rung.measured for rung in report.rungs}
    worst = max(measured[name] or 0.0 for name in LOGIT_RUNGS)
    cost = [measured["rounded logits"], measured["KL divergence"], measured["perplexity"]]
    shown = ["-" if value is None else f"{value:.1e}" for value in cost]
    other = measured["top-1 agreement"]
    agreement = "-" if other is None else f"{1 - other:.1%}"
    cells = [checkpoint.resolve().parent.name + "/" + checkpoint.name, precision, path, task, f"{worst:.1e}"]
    return f"| {' | '.join([*cells, shown[0], shown[1], agreement, shown[2]])} |"


def main() -> None:
    """Export every way and print the table."""
    print(HEAD)
    for name in sys.argv[1:]:
        for precision in PRECISIONS:
            for path in PATHS:
                with tempfile.TemporaryDirectory() as folder:
                    recipe = Recipe(path, "copy", precision)
                    made = pipeline.export(name, Path(folder) / "bundle", recipe=recipe)
                assert made.report is not None
                print(row(Path(name), precision, path, made.manifest.task, made.report), flush=True)


if __name__ == "__main__":
    main()
