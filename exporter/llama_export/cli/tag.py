"""``llama-export tag``: labels of words from a bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama_export.cli.command import FOLDER, THREADS, on_device, one_sentence
from llama_export.cli.texts import BATCH, LINES, TEXTS, batches

if TYPE_CHECKING:
    from llama_runtime.opening import Device


@click.command(short_help="Label the words of texts with a bundle, without PyTorch.")
@click.argument("bundle", type=FOLDER)
@TEXTS
@click.option(
    "--aggregation",
    type=click.Choice(["first", "max", "average"]),
    default="first",
    show_default=True,
    help="One label from a word's tokens: the first's, the surest's, or that of their mean scores.",
)
@click.option("--entities", "only_entities", is_flag=True, help="Join B- and I- words; leave out the rest.")
@BATCH
@THREADS
@on_device
@LINES
@one_sentence
def tag(
    bundle: Path,
    texts: tuple[str, ...],
    aggregation: Any,
    only_entities: bool,
    batch_size: int,
    threads: int | None,
    device: Device,
    engine: str | None,
    as_json: bool,
) -> None:
    """Label every word of TEXTS, or of each line of stdin, with BUNDLE's model.

    Prints word, label, score, start and end with tabs between them, and an empty line behind each text.
    """
    import llama_runtime

    tagger = llama_runtime.load_tagger(bundle, threads=threads, device=device, engine=engine)
    for batch in batches(texts, batch_size):
        found = tagger.tag(batch, aggregation=aggregation, batch_size=batch_size)
        for text, words in zip(batch, found, strict=True):
            tags = llama_runtime.entities(text, words) if only_entities else words
            if as_json:
                facts = {"text": text, "tags": [dataclasses.asdict(item) for item in tags]}
                click.echo(json.dumps(facts, ensure_ascii=False))
                continue
            for item in tags:
                click.echo(f"{item.text}\t{item.label}\t{item.score:.4f}\t{item.start}\t{item.end}")
            click.echo()
