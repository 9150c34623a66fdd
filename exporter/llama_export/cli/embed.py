"""``llama-export embed``: vectors from a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama_export.cli.command import FOLDER, THREADS, on_device, one_sentence
from llama_export.cli.texts import BATCH, LINES, TEXTS, TRUNCATE, batches
from llama_export.errors import OptionError

if TYPE_CHECKING:
    from llama_runtime.opening import Device


@click.command(short_help="Turn texts into vectors with a bundle, without PyTorch.")
@click.argument("bundle", type=FOLDER)
@TEXTS
@click.option(
    "--pooling",
    type=click.Choice(["mean", "last", "cls", "none"]),
    default="mean",
    show_default=True,
    help="Over a text's own tokens: their mean, the last, the first; none: a vector a token.",
)
@click.option("--normalize", is_flag=True, help="Scale every vector to length 1.")
@TRUNCATE
@BATCH
@THREADS
@on_device
@LINES
@one_sentence
def embed(
    bundle: Path,
    texts: tuple[str, ...],
    pooling: Any,
    normalize: bool,
    truncate: bool,
    batch_size: int,
    threads: int | None,
    device: Device,
    engine: str | None,
    as_json: bool,
) -> None:
    """Turn each of TEXTS, or each line of stdin, into a vector with BUNDLE's model.

    Prints a line of numbers for each vector; with --json an object with text and embedding for each text.
    """
    import llama_runtime

    if pooling == "none" and normalize:
        raise OptionError("--normalize scales pooled vectors, --pooling is none", "leave one of them out")
    embedder = llama_runtime.load_embedder(bundle, threads=threads, device=device, engine=engine)
    for batch in batches(texts, batch_size):
        if pooling == "none":
            found = embedder.hidden_states(batch, truncate=truncate, batch_size=batch_size)
        else:
            found = [*embedder.embed(batch, pooling=pooling, normalize=normalize, truncate=truncate)]
        for text, vectors in zip(batch, found, strict=True):
            if as_json:
                click.echo(json.dumps({"text": text, "embedding": vectors.tolist()}, ensure_ascii=False))
                continue
            for vector in vectors.reshape(-1, vectors.shape[-1]):
                click.echo(" ".join(f"{number:.7g}" for number in vector))
