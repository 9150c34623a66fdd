"""``llama-export onnx``: a checkpoint becomes a bundle."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import llama_export
from llama_export.cli.command import FOLDER, JSON, echo, one_sentence
from llama_export.collecting import uncollected
from llama_export.interruption import ended_by_signals
from llama_export.show import exported_lines, plan_lines

if TYPE_CHECKING:
    from llama_export.recipe import Recipe


@click.command(short_help="Export a checkpoint to a bundle, verified.")
@click.argument("checkpoint", type=FOLDER)
@click.argument("output", type=FOLDER, required=False)
@click.option(
    "--recipe", "recipe_file", type=FOLDER, help="TOML file with these choices; options here win over it."
)
@click.option("--task", metavar="TASK", type=click.Choice(["text-generation", "feature-extraction",
                  "text-classification", "token-classification", "question-answering"]),
              help="What the bundle is for; default what the checkpoint was saved for. text-generation, "
                   "text-classification, token-classification, question-answering, or feature-extraction: "
                   "hidden states, from any checkpoint.")  # fmt: skip
@click.option("--attention", type=click.Choice(["eager", "sdpa", "flash"]),
              help="flash: fastest in ONNX Runtime (default). sdpa: standard operators only, opset 23. "
                   "eager: basic operators only, opset 18.")  # fmt: skip
@click.option(
    "--hidden-states",
    type=click.Choice(["last", "all"]),
    help="A language model gives its last hidden states too, so that it also embeds; or all.",
)
@click.option(
    "--attentions",
    is_flag=True,
    default=None,
    help="It gives every layer's attention weights too; with --attention eager.",
)
@click.option("--inputs-embeds", is_flag=True, default=None,
              help="It takes embeddings in place of token ids; a second graph looks them up.")  # fmt: skip
@click.option("--compute", type=click.Choice(["float32", "float16"]),
              help="What the graph computes in, default float32. float16 is for --device cuda: weights and "
                   "cache are float16 too.")  # fmt: skip
@click.option("--weights", type=click.Choice(["link", "copy", "beside"]),
              help="link: shares the checkpoint's bytes (default where they stand as needed). "
                   "copy: writes them anew, in --precision. "
                   "beside: the checkpoint's folder becomes the bundle.")  # fmt: skip
@click.option("--precision", type=click.Choice(["float32", "float16", "bfloat16", "int8", "int4"]),
              help="How --weights copy stores them; default as in the checkpoint. int8, int4: matrices in "
                   "blocks that share a scale.")  # fmt: skip
@click.option("--block-size", type=click.Choice([32, 64, 128]),
              help="Values of a quantized matrix that share a scale, default 32. Larger is faster, "
                   "smaller is closer to the checkpoint.")  # fmt: skip
@click.option(
    "--asymmetric",
    is_flag=True,
    default=None,
    help="Each block has a code of its own for zero: closer, slower.",
)
@click.option("--keep", metavar="PATTERN=PRECISION,...",
              help='Store some matrices otherwise, such as "lm_head=int8,layers.0.*=float32".')  # fmt: skip
@click.option("--quantizer", type=click.Choice(["search", "nearest", "gptq"]),
              help="search: tries several scales for every block (default). nearest: rounds. "
                   "gptq: calibrated with a text.")  # fmt: skip
@click.option("--calibration", type=FOLDER,
              help="UTF-8 text like those the model will read, for gptq and --cache int8; some pages are "
                   "enough.")  # fmt: skip
@click.option("--cache", type=click.Choice(["float32", "int8"]),
              help="How a language model keeps keys and values; int8 is a quarter of the memory, "
                   "with --attention flash.")  # fmt: skip
@click.option("--adapter", "adapters", type=FOLDER, multiple=True,
              help="Folder of a PEFT LoRA or DoRA adapter to merge; several go in order.")  # fmt: skip
@click.option(
    "--verify/--no-verify",
    default=None,
    help="Compare with the eager PyTorch model before publishing (default).",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle, as a whole.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@JSON
@one_sentence
def onnx(
    checkpoint: Path,
    output: Path | None,
    recipe_file: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Export CHECKPOINT, a LLaMA folder of Hugging Face's or Meta's, to a bundle in OUTPUT.

    With no options the export is exact: the checkpoint's own weights, shared with it rather than copied
    where they stand on disk as the model needs them.
    OUTPUT is artifacts/<name> by default. The checkpoint's files are never changed.
    """
    llama_export.require_export_extra()
    with uncollected():
        recipe = _recipe(recipe_file, choices | {"adapters": choices["adapters"] or None})
    if dry_run:
        from llama_export.pipeline import prepare
        from llama_export.plan import plan_export

        source, weights, target, _ = prepare(checkpoint, output, recipe, force=force)
        plan = plan_export(source, weights, target, recipe)
        echo(plan.to_dict() if as_json else plan_lines(plan), as_json)
        return
    with ended_by_signals(), nullcontext() if recipe.verify else uncollected():
        exported = llama_export.export(checkpoint, output, recipe=recipe, force=force)
    if as_json:
        parity = exported.report and exported.report.to_dict()
        facts = {"output": str(exported.output), "weights": exported.placed_as, "seconds": exported.seconds}
        echo(facts | {"parity": parity, "notes": exported.notes}, as_json)
    else:
        echo(exported_lines(exported), as_json)


def _recipe(file: Path | None, choices: dict[str, Any]) -> Recipe:
    from llama_export.recipe import Recipe, read_recipe

    recipe = Recipe() if file is None else read_recipe(file)
    return replace(recipe, **{name: value for name, value in choices.items() if value is not None})
