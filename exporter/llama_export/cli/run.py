"""``llama-export run``: text from a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from llama_export.cli.command import FOLDER, JSON, THREADS, echo, one_sentence
from llama_export.errors import OptionError


@click.command(short_help="Continue a prompt with a bundle, without PyTorch.")
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
        echo(facts, as_json)
        return
    for piece in generator.stream(prompt, sampling):
        click.echo(piece.text, nl=False)
    click.echo()


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
