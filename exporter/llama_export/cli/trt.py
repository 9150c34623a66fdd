"""``llama-export trt``: a bundle gets a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import llama_export
from llama_export.cli.command import FOLDER, JSON, echo, one_sentence
from llama_export.errors import OptionError
from llama_export.interruption import ended_by_signals
from llama_export.show import engine_lines, engine_plan_lines


@click.command(short_help="Build a TensorRT engine into a bundle.")
@click.argument("source", type=FOLDER, metavar="CHECKPOINT_OR_BUNDLE")
@click.argument("output", type=FOLDER, required=False)
@click.option("--precision", default="bf16", show_default=True,
              type=click.Choice(["bf16", "fp16", "fp32", "int8", "int4", "fp8"]),
              help="Of the weights; the first three also of everything else. The last three are for matrices "
                   "alone, and are computed in --compute.")  # fmt: skip
@click.option("--compute", type=click.Choice(["bf16", "fp16", "fp32"]),
              help="What int8, int4 and fp8 engines compute in; default bf16.")  # fmt: skip
@click.option("--block-size", type=int, metavar="N",
              help="Values of an int4 matrix that share a scale: 32, 64 or 128; default an int4 bundle's "
                   "own, or 64.")  # fmt: skip
@click.option("--max-seq", type=int, metavar="N",
              help="The longest text, in tokens; default the model's limit, at most 4096.")  # fmt: skip
@click.option("--buckets", metavar="N,N,...",
              help="How many slots of the cache a decode may read, rising to --max-seq; "
                   "default 512, 1024, ...")  # fmt: skip
@click.option("--prefill-chunk", type=int, metavar="N", default=512, show_default=True,
              help="The most tokens of a prompt in one run.")  # fmt: skip
@click.option("--max-batch", type=int, metavar="N", default=1, show_default=True,
              help="The most rows that run together.")  # fmt: skip
@click.option("--builder", default="auto", show_default=True,
              type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
              help="tensorrt builds on the GPU that will run it; tensorrt-rtx needs none.")  # fmt: skip
@click.option("--compute-capability", "compute_capabilities", multiple=True, metavar="X.Y",
              help="A GPU to build for, with tensorrt-rtx; may be repeated. Default this machine's, "
                   "or all that have the precision.")  # fmt: skip
@click.option("--version-compatible", is_flag=True, help="Later minor versions open the plan; tensorrt only.")
@click.option("--refittable", is_flag=True, help="The plan's weights can be exchanged; tensorrt only.")
@click.option("--stripped", is_flag=True,
              help="A small plan without weights, which stay beside it; tensorrt only.")  # fmt: skip
@click.option("--timing-cache", type=FOLDER, metavar="FILE",
              help="Keeps what the builder measures, for its next builds; tensorrt only.")  # fmt: skip
@click.option("--task", metavar="TASK", help="Of a checkpoint, as for onnx.")
@click.option("--adapter", "adapters", type=FOLDER, multiple=True, help="For a checkpoint, as for onnx.")
@click.option("--no-verify", is_flag=True, help="Of a checkpoint: do not compare its bundle with PyTorch.")
@click.option("--onnx-only", is_flag=True, help="Write the checked graph, and build nothing.")
@click.option("--force", is_flag=True, help="Replace an engine of this name, or a bundle at OUTPUT.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@JSON
@one_sentence
def trt(
    source: Path,
    output: Path | None,
    buckets: str | None,
    task: str | None,
    adapters: tuple[Path, ...],
    no_verify: bool,
    onnx_only: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Build a TensorRT engine of CHECKPOINT_OR_BUNDLE.

    A bundle gets it as trt/<precision>.plan, or its copy in OUTPUT does; its weights are shared. A checkpoint
    is exported to a bundle in OUTPUT first, as `llama-export onnx` does, and verified. The graph is checked
    for everything that TensorRT would refuse or silently compute wrongly before anything is built.
    """
    llama_export.require_export_extra()
    from llama_export.engine.options import EngineOptions
    from llama_export.engine_export import export_engine, prepare_engine
    from llama_export.recipe import Recipe

    options = EngineOptions(buckets=_numbers(buckets), **choices)
    recipe = Recipe(task=task, adapters=adapters, verify=not no_verify)  # type: ignore[arg-type]
    if dry_run:
        plan = prepare_engine(source, output, options, recipe, onnx_only=onnx_only, force=force).plan
        echo(plan.to_dict() if as_json else engine_plan_lines(plan), as_json)
        return
    with ended_by_signals():
        done = export_engine(source, output, options=options, recipe=recipe, onnx_only=onnx_only, force=force)
    facts = {"output": str(done.output), "name": done.added.name, "seconds": done.seconds}
    facts |= {
        "plan": done.added.engine.plan and done.added.engine.plan.path,
        "limits": done.plan.to_dict()["limits"],
    }
    echo(facts if as_json else engine_lines(done), as_json)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(
            f"--buckets is {text!r}, must be numbers with commas", "such as --buckets 512,1024,2048"
        ) from None
