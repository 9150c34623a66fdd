"""``llama-export inspect``: what a folder is."""

from __future__ import annotations

from pathlib import Path

import click

import llama_export
from llama_export.cli.command import FOLDER, JSON, echo, one_sentence
from llama_export.show import bundle_lines, checkpoint_lines


@click.command(short_help="Say what a checkpoint or bundle is.")
@click.argument("folder", type=FOLDER)
@JSON
@one_sentence
def inspect(folder: Path, as_json: bool) -> None:
    """Say what FOLDER is: a checkpoint, and whether it can be exported, or a bundle, and what it proves."""
    facts = llama_export.inspect(folder)
    lines = checkpoint_lines if facts["kind"] == "checkpoint" else bundle_lines
    echo(facts if as_json else lines(facts), as_json)
