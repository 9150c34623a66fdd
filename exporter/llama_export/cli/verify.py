"""``llama-export verify``: a bundle against its checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import llama_export
from llama_export.cli.command import FOLDER, JSON, echo, one_sentence
from llama_export.errors import OptionError
from llama_export.show import report_lines


@click.command(short_help="Compare a bundle with its checkpoint, rung by rung.")
@click.argument("bundle", type=FOLDER)
@click.option(
    "--checkpoint", type=FOLDER, required=True, help="The checkpoint that the bundle was exported from."
)
@click.option("--adapter", "adapters", type=FOLDER, multiple=True, help="As given when it was exported.")
@click.option(
    "--prompts", type=FOLDER, help="UTF-8 text file, one prompt a line, in place of the built-in ones."
)
@JSON
@one_sentence
def verify(
    bundle: Path, checkpoint: Path, adapters: tuple[Path, ...], prompts: Path | None, as_json: bool
) -> None:
    """Compare BUNDLE with the eager PyTorch model of its checkpoint, rung by rung.

    Exit code 0: equal; 1: it differs; 2: bad input. Without the checkpoint at hand, use selftest.
    """
    texts = None if prompts is None else _read_prompts(prompts)
    report = llama_export.verify(bundle, checkpoint, adapters=adapters, texts=texts)
    echo(report.to_dict() if as_json else report_lines(report), as_json)
    sys.exit(0 if report.passed else 1)


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
