"""Precision x attention path x head: what verification measured on the demo checkpoint and on awkward ones.

python benchmarks/parity_table.py                      # every case: a quarter of an hour on 2 cores
python benchmarks/parity_table.py --precisions float16 --cases "demo"

Leaves results/<date>-parity.json with every rung of every bundle, and .md with the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import machine

from llama_export import pipeline
from llama_export.errors import LlamaExportError
from llama_export.model import ATTENTION_PATHS, HeadConfig, LlamaConfig
from llama_export.recipe import Recipe

REPO = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
sys.path.append(str(REPO / "tests"))

from tiny_checkpoints import CONFIGS, VARIANTS, write_checkpoint  # noqa: E402

PRECISIONS = ("float32", "float16", "bfloat16")
COMPUTED = (
    *("attention", "one layer", "prefill", "decode", "chunked prefill", "outputs"),
    *("left-padded batch", "right-padded batch", "far positions", "whole context"),
)
LABELS = ("calm", "stormy", "both")
HEADS = {
    "hidden states": HeadConfig("feature-extraction"),
    "text classification": HeadConfig("text-classification", LABELS),
    "text classification, several labels": HeadConfig(
        "text-classification", LABELS, "multi_label_classification"
    ),
    "reward": HeadConfig("text-classification", ("reward",), "regression"),
    "token classification": HeadConfig("token-classification", LABELS, bias=True),
    "question answering": HeadConfig("question-answering"),
}
AWKWARD = CONFIGS | VARIANTS
WORDS = {
    "gqa": "6 query heads on 2, width 42, vocabulary 131",
    "mha_tied": "3 heads, tied embedding",
    "mqa_llama3": "5 query heads on 1, rope llama3",
    "linear": "as the first, rope linear, MLP biases, GELU",
    "dynamic": "3 heads, tied, rope dynamic, GELU's tanh form",
    "yarn": "6 query heads on 2, rope yarn, attention and MLP biases",
    "longrope": "5 query heads on 1, rope longrope, attention biases",
}


ABOUT = """\
Each bundle was exported with `--weights copy --precision P` and verified; the demo from bfloat16
weights, the others from float32. **Largest difference**: of any logit, output or intermediate tensor of
the first layer, from the eager float32 model on the weights that the bundle stores, as a fraction of the
reference's largest value there. What follows is against the unrounded checkpoint, the worst of the three
paths; a dash: nothing was rounded, or the head has nothing of the kind. Top-1: next tokens, labels, or
places of an answer."""


@dataclass(frozen=True)
class Case:
    """One checkpoint and what is made of it.

    Attributes:
        checkpoint: As the table shows it.
        head: The same.
        folder: Where the checkpoint stands.
        task: None is the checkpoint's own.
    """

    checkpoint: str
    head: str
    folder: Path
    task: str | None = None


def cases(work: Path) -> Iterator[Case]:
    """The demo, every awkward language model, and every head on the two of them that have most of it all."""
    demo = REPO / "recipes/tiny/checkpoint"
    yield Case("demo", "language model", demo)
    yield Case("demo", "hidden states", demo, "feature-extraction")
    for name, config in AWKWARD.items():
        yield Case(name, "language model", write_checkpoint(work / name, config))
    for name in ("yarn", "mqa_llama3"):
        for title, head in HEADS.items():
            yield Case(name, title, write_head(work / f"{name} {title}", AWKWARD[name], head))


def write_head(folder: Path, config: LlamaConfig, head: HeadConfig) -> Path:
    """A random checkpoint with a task's head."""
    facts: dict[str, Any] = {"problem_type": head.problem_type} if head.problem_type else {}
    if head.labels:
        facts["id2label"] = dict(enumerate(head.labels))
    return write_checkpoint(folder, replace(config, head=head, tie_word_embeddings=False), **facts)


def measure(case: Case, precision: str, path: str, work: Path) -> dict[str, Any]:
    """Export once, verified; the numbers of every rung, or why there is no bundle."""
    facts: dict[str, Any] = {"checkpoint": case.checkpoint, "head": case.head}
    facts |= {"precision": precision, "path": path}
    recipe = Recipe(path, "copy", precision, task=case.task)
    try:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            made = pipeline.export(case.folder, Path(folder) / "bundle", recipe=recipe)
    except LlamaExportError as error:
        return facts | {"failure": str(error)}
    assert made.report is not None
    return facts | {"rungs": {r.name: r.measured for r in made.report.rungs if r.measured is not None}}


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each checkpoint, head and precision; where paths share a column, the worst."""
    paths = ATTENTION_PATHS
    titles = ["checkpoint", "head", "precision", *(f"largest difference, {path}" for path in paths)]
    titles += ["largest from unrounded", "KL, nats", "top-1 agreement", "perplexity, or 1 - cosine"]
    lines = [titles, ["---"] * 3 + ["---:"] * (len(titles) - 3)]
    keys = dict.fromkeys((row["checkpoint"], row["head"], row["precision"]) for row in rows)
    for key in keys:
        of_path = {r["path"]: r for r in rows if (r["checkpoint"], r["head"], r["precision"]) == key}
        found = [of_path[path] for path in paths]
        measured = [row.get("rungs", {}) for row in found]
        computed = [
            row.get("failure", "failed") if "failure" in row else f"{largest(rungs, COMPUTED):.1e}"
            for row, rungs in zip(found, measured, strict=True)
        ]
        cost = [
            worst(measured, "rounded logits", "rounded outputs"),
            worst(measured, "KL divergence"),
            worst(measured, "perplexity", "cosine"),
        ]
        shown = ["-" if value is None else f"{value:.1e}" for value in cost]
        other = worst(measured, "top-1 agreement")
        agreement = "-" if other is None else f"{1 - other:.1%}"
        lines.append([*key, *computed, shown[0], shown[1], agreement, shown[2]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def largest(rungs: dict[str, float], names: tuple[str, ...]) -> float:
    """Of those rungs that were measured."""
    return max(value for name, value in rungs.items() if name in names)


def worst(measured: list[dict[str, float]], *names: str) -> float | None:
    """Over all paths; None where none measured it."""
    values = [rungs[name] for rungs in measured for name in names if name in rungs]
    return max(values) if values else None


def page(rows: list[dict[str, Any]], facts: dict[str, Any], command: str) -> str:
    """The results as Markdown."""
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    return "\n\n".join(
        [
            f"# Parity, measured on {facts['date'][:10]}",
            f"{facts['cpu']}; {versions}. {command}",
            ABOUT,
            table(rows),
            "The awkward checkpoints are random: " + "; ".join(f"{k}: {v}" for k, v in WORDS.items()) + ".",
        ]
    ) + "\n"  # fmt: skip


def main() -> None:
    """Export every way and leave the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="default %(default)s")
    parser.add_argument("--cases", default="", help="only checkpoints with one of these in their name")
    parser.add_argument("--name", default="parity", help="of the results: results/<date>-<name>.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for case in cases(work):
            if not any(part in case.checkpoint for part in options.cases.split(",")):
                continue
            for precision in options.precisions.split(","):
                for path in ATTENTION_PATHS:
                    rows.append(measure(case, precision, path, work))
                    print(*rows[-1].values(), file=sys.stderr, flush=True)
    facts = machine.describe()
    stem = f"{str(facts['date'])[:10]}-{options.name}"
    command = " ".join(["python benchmarks/parity_table.py", *sys.argv[1:]])
    results = {"machine": facts, "command": command, "rows": rows}
    (RESULTS / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / f"{stem}.md").write_text(page(rows, facts, command))
    print(table(rows))


if __name__ == "__main__":
    main()
