"""``llama-export convert``: a checkpoint in any layout becomes a Hugging Face folder."""

from __future__ import annotations

import re
from pathlib import Path

import click

import llama_export
from llama_export.cli.command import FOLDER, JSON, echo, one_sentence
from llama_export.errors import OptionError
from llama_export.interruption import ended_by_signals
from llama_export.show import converted_lines

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@click.command(short_help="Write a checkpoint as an ordinary Hugging Face folder.")
@click.argument("checkpoint", type=FOLDER)
@click.argument("output", type=FOLDER)
@click.option(
    "--adapter", "adapters", type=FOLDER, multiple=True, help="A PEFT adapter to merge; may be repeated."
)
@click.option(
    "--max-shard-size",
    default="5GB",
    show_default=True,
    help="Largest safetensors file, such as 500MB or 2GiB.",
)
@JSON
@one_sentence
def convert(
    checkpoint: Path, output: Path, adapters: tuple[Path, ...], max_shard_size: str, as_json: bool
) -> None:
    """Write CHECKPOINT, in Meta's layout, pickles, Flax or safetensors, as a Hugging Face folder in OUTPUT.

    The weights are streamed and keep their precision, so that a model far larger than memory converts too.
    OUTPUT must not exist; nothing is left in it unless all succeeds.
    """
    llama_export.require_export_extra()
    limit = _parse_size(max_shard_size)
    with ended_by_signals():
        converted = llama_export.convert(checkpoint, output, adapters=adapters, max_shard_bytes=limit)
    if as_json:
        facts = {"output": str(converted.output), "files": converted.files, "tensors": converted.tensors}
        echo(facts | {"notes": converted.notes, "seconds": converted.seconds}, as_json)
    else:
        echo(converted_lines(converted), as_json)


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text)
    nbytes = float(match[1]) * _UNITS.get(match[2].upper(), 0) if match else 0
    if nbytes < 1:
        raise OptionError(
            f"--max-shard-size is {text}, must be a number and a unit", "such as 500MB, 5GB or 2GiB"
        )
    return int(nbytes)
