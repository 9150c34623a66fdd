"""``llama-export run --stdin``: every line of stdin is a prompt, every line of stdout an answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import click

from llama_export.cli.generation import facts, shown
from llama_runtime import Generation
from llama_runtime.errors import LlamaRuntimeError

Answer = Callable[[str], Generation]
ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})


def answer_lines(answer: Answer, as_json: bool) -> bool:
    """Answer line after line, each as soon as it is read; a bad one is reported and the rest goes on.

    Args:
        answer: A prompt to its generation.
        as_json: Print an object for each line, in place of the text with line breaks as ``\\n``.

    Returns:
        Whether all lines were answered.
    """  # noqa: D301
    all_well = True
    for number, line in enumerate(iter(sys.stdin.buffer.readline, b""), start=1):
        prompt = line.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
        try:
            done = answer(prompt)
        except LlamaRuntimeError as error:
            all_well = False
            click.echo(f"error: line {number}: {error.message}", err=True)
            # Lines out stay level with lines in.
            click.echo(json.dumps({"error": error.message}) if as_json else "")
        else:
            click.echo(json.dumps(facts(done)) if as_json else shown(done.text.translate(ESCAPES)))
        sys.stdout.flush()
    return all_well
