"""Texts for a command: its arguments, or the lines of stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice

import click

from llama_export.errors import OptionError

TEXTS = click.argument("texts", nargs=-1)
BATCH = click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Texts in one run."
)
LINES = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line to stdout.")
TRUNCATE = click.option(
    "--truncate",
    is_flag=True,
    help="Cut texts longer than the model has positions, instead of refusing them.",
)


def batches(texts: tuple[str, ...], size: int) -> Iterator[list[str]]:
    """Yield the texts, or stdin's lines, a batch at a time as they come.

    Raises:
        OptionError: stdin is not UTF-8.
    """
    source = iter(texts) if texts else stdin_lines()
    while batch := list(islice(source, size)):
        yield batch


def stdin_lines() -> Iterator[str]:
    """Yield the lines of stdin without their ends.

    Raises:
        OptionError: One is not UTF-8, by its number.
    """
    if sys.stdin.isatty():
        click.echo("one text a line, ended by Ctrl-D:", err=True)
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise OptionError(
                f"stdin: line {number} is not UTF-8, texts must be", "convert it first"
            ) from None
