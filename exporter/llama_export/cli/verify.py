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
    "--checkpoint",
    type=FOLDER,
    help="The checkpoint that the bundle was exported from. Without it, hashes and known answers alone.",
)
@click.option("--adapter", "adapters", type=FOLDER, multiple=True, help="As given when it was exported.")
@click.option(
    "--prompts",
    type=FOLDER,
    help="UTF-8 text file, one prompt a line, in place of the built-in ones; the first 16 are read.",
)
@click.option("--quick", is_flag=True, help="Leave out padded batches and the whole context.")
@click.option(
    "--force", is_flag=True, help="Compare even if the checkpoint is not the bundle's source, by its hash."
)
@click.option(
    "--report",
    "target",
    type=FOLDER,
    help="Write parity.json and parity.html into this folder, or one of them as this file.",
)
@JSON
@one_sentence
def verify(
    bundle: Path,
    checkpoint: Path | None,
    adapters: tuple[Path, ...],
    prompts: Path | None,
    quick: bool,
    force: bool,
    target: Path | None,
    as_json: bool,
) -> None:
    """Compare BUNDLE with the eager PyTorch model of its checkpoint, rung by rung.

    Exit code 0: equal; 1: it differs; 2: bad input.
    """
    llama_export.require_export_extra()
    from llama_export.parity import report_files, write_report

    if target is not None:
        report_files(target)
    texts = None if prompts is None else _read_prompts(prompts)
    report = llama_export.verify(bundle, checkpoint, adapters=adapters, texts=texts, quick=quick, force=force)
    if target is not None:
        write_report(target, report, bundle.resolve().name)
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
