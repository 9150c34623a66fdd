"""The command line: each command is a few lines over the Python functions of the same name."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import llama_export
from llama_export.errors import LlamaExportError, OptionError
from llama_export.show import bundle_lines, checkpoint_lines, exported_lines, plan_lines, report_lines
from llama_runtime.errors import LlamaRuntimeError

if TYPE_CHECKING:
    from llama_export.recipe import Recipe

FOLDER = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON to stdout.")
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; default every physical core."
)


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Turn every error that a person can cause into one sentence, a hint and an exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (LlamaExportError, LlamaRuntimeError) as error:
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:
            # The reader of our output has gone; a second error on closing stdout helps nobody.
            sys.stdout = None
            sys.exit(141)

    return wrapped


class InOrder(click.Group):
    """Lists the commands in the order of this file, which is that of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Not sorted by name."""
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("llama-export"), prog_name="llama-export")
def main() -> None:
    """Any LLaMA checkpoint in, one bundle out, that runs without PyTorch and is proven equal to it.

    \b
      llama-export inspect my-llama            what it is, and whether it can be exported
      llama-export onnx my-llama               a bundle in artifacts/my-llama, verified
      llama-export run artifacts/my-llama "Once upon a time"
      llama-export selftest artifacts/my-llama on any machine, without the checkpoint

    Exit codes: 0 done, 1 a bundle computes something else than its reference, 2 bad input.
    """  # noqa: D301  (the \\b that keeps the lines apart is click's, and must be a real one)


@main.command(short_help="Export a checkpoint to a bundle, verified.")
@click.argument("checkpoint", type=FOLDER)
@click.argument("output", type=FOLDER, required=False)
@click.option(
    "--recipe", "recipe_file", type=FOLDER, help="TOML file with these choices; options here win over it."
)
@click.option("--attention", type=click.Choice(["eager", "sdpa", "flash"]),
              help="flash: fastest in ONNX Runtime (default). sdpa: standard operators only, opset 23. "
                   "eager: basic operators only, opset 18.")  # fmt: skip
@click.option("--weights", type=click.Choice(["link", "copy", "beside"]),
              help="link: shares the checkpoint's bytes (default). copy: writes them anew, in --precision. "
                   "beside: the checkpoint's folder becomes the bundle.")  # fmt: skip
@click.option("--precision", type=click.Choice(["float32", "float16", "bfloat16"]),
              help="How --weights copy stores them; default as in the checkpoint.")  # fmt: skip
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
    """Export CHECKPOINT, a Hugging Face LLaMA folder, to a bundle in OUTPUT.

    With no options the export is exact: the checkpoint's own weights, shared with it rather than copied.
    OUTPUT is artifacts/<name> by default. The checkpoint's files are never changed.
    """
    llama_export.require_export_extra()
    # A polite kill cleans up like Ctrl-C does; without this it would not even run a finally.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    recipe = _recipe(recipe_file, choices)
    if dry_run:
        from llama_export.pipeline import prepare
        from llama_export.plan import plan_export

        plan = plan_export(*prepare(checkpoint, output, recipe, force=force), recipe)
        _print(plan.to_dict() if as_json else plan_lines(plan), as_json)
        return
    exported = llama_export.export(checkpoint, output, recipe=recipe, force=force)
    if as_json:
        parity = exported.report and exported.report.to_dict()
        facts = {"output": str(exported.output), "weights": exported.placed_as, "seconds": exported.seconds}
        _print(facts | {"parity": parity}, as_json)
    else:
        _print(exported_lines(exported), as_json)


@main.command(short_help="Compare a bundle with its checkpoint, rung by rung.")
@click.argument("bundle", type=FOLDER)
@click.option(
    "--checkpoint", type=FOLDER, required=True, help="The checkpoint that the bundle was exported from."
)
@click.option(
    "--prompts", type=FOLDER, help="UTF-8 text file, one prompt a line, in place of the built-in ones."
)
@JSON
@one_sentence
def verify(bundle: Path, checkpoint: Path, prompts: Path | None, as_json: bool) -> None:
    """Compare BUNDLE with the eager PyTorch model of its checkpoint, rung by rung.

    Exit code 0: equal; 1: it differs; 2: bad input. Without the checkpoint at hand, use selftest.
    """
    texts = None if prompts is None else _read_prompts(prompts)
    report = llama_export.verify(bundle, checkpoint, texts=texts)
    _print(report.to_dict() if as_json else report_lines(report), as_json)
    sys.exit(0 if report.passed else 1)


@main.command(short_help="Say what a checkpoint or bundle is.")
@click.argument("folder", type=FOLDER)
@JSON
@one_sentence
def inspect(folder: Path, as_json: bool) -> None:
    """Say what FOLDER is: a checkpoint, and whether it can be exported, or a bundle, and what it proves."""
    facts = llama_export.inspect(folder)
    lines = checkpoint_lines if facts["kind"] == "checkpoint" else bundle_lines
    _print(facts if as_json else lines(facts), as_json)


@main.command(short_help="Continue a prompt with a bundle, without PyTorch.")
@click.argument("bundle", type=FOLDER)
@click.argument("prompt", required=False)
@click.option(
    "-n", "--max-new-tokens", type=int, default=128, show_default=True, help="Stop after so many tokens."
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-k", type=int, default=0, show_default=True, help="Draw from the k likeliest only; 0: from all."
)
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, help="Draw from the smallest set this likely."
)
@click.option("--seed", type=int, help="Makes a drawn text repeatable.")
@click.option("--stop", multiple=True, help="End before this string; may be given more than once.")
@THREADS
@JSON
@one_sentence
def run(
    bundle: Path,
    prompt: str | None,
    stop: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue PROMPT, or the text on stdin, with BUNDLE's model. Needs no PyTorch.

    Greedy unless a temperature is given. One line break at the end of stdin is not part of the prompt.
    """
    import llama_runtime

    sampling = llama_runtime.SamplingOptions(stop=stop, **options)
    generator = llama_runtime.load(bundle, threads=threads)
    prompt = _read_prompt() if prompt is None else prompt
    if as_json:
        done = generator.generate(prompt, sampling)
        facts = {
            "text": done.text,
            "tokens": done.tokens,
            "prompt_tokens": done.prompt_tokens,
            "finish_reason": done.finish_reason,
            "seed": done.seed,
            "prefill_ms": done.timings.prefill_ms,
            "decode_tokens_per_s": done.timings.decode_tokens_per_second(done),
        }
        _print(facts, as_json)
        return
    for piece in generator.stream(prompt, sampling):
        click.echo(piece.text, nl=False)
    click.echo()


@main.command(short_help="Replay a bundle's known answers on this machine.")
@click.argument("bundle", type=FOLDER)
@THREADS
@JSON
@one_sentence
def selftest(bundle: Path, threads: int | None, as_json: bool) -> None:
    """Replay BUNDLE's known answers: does it compute here what it computed when it was exported?

    Needs neither PyTorch nor the checkpoint. Exit code 0: yes; 1: no, and what differs.
    """
    import llama_runtime

    report = llama_runtime.selftest(bundle, threads=threads)
    if as_json:
        facts = {
            "ok": report.ok,
            "answers": report.answers,
            "tokens": report.tokens,
            "largest_logit_difference": report.largest_logit_difference,
            "differences": [str(difference) for difference in report.differences],
        }
        _print(facts, as_json)
        sys.exit(0 if report.ok else 1)
    report.check()
    difference = report.largest_logit_difference
    measured = "" if difference is None else f", logits within {difference:.1e}"
    click.echo(f"ok: {report.answers} known answers, {report.tokens} tokens{measured}")


def _recipe(file: Path | None, choices: dict[str, Any]) -> Recipe:
    from llama_export.recipe import Recipe, read_recipe

    recipe = Recipe() if file is None else read_recipe(file)
    return replace(recipe, **{name: value for name, value in choices.items() if value is not None})


def _read_prompt() -> str:
    if sys.stdin.isatty():
        click.echo("prompt, ended by Ctrl-D on a line of its own:", err=True)
    try:
        prompt = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(
            f"stdin: byte {error.start} is not UTF-8, the prompt must be", "convert it first"
        ) from None
    return prompt.removesuffix("\n")  # what echo and editors append


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror})", "name a text file") from None
    except UnicodeDecodeError:
        raise OptionError(f"{path}: not UTF-8, prompts must be", "convert it first") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise OptionError(f"{path}: holds no prompt, needs one a line", "write some, or leave --prompts out")
    return texts


def _print(content: Any, as_json: bool) -> None:
    click.echo(json.dumps(content, indent=2, default=str) if as_json else "\n".join(content))
