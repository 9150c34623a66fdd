"""``llama-export classify``: labels and scores from a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llama_export.cli.command import FOLDER, THREADS, on_device, one_sentence
from llama_export.cli.texts import BATCH, LINES, TEXTS, TRUNCATE, batches

if TYPE_CHECKING:
    from llama_runtime.opening import Device
    from llama_runtime.tasks import Classification


@click.command(short_help="Label texts with a bundle, without PyTorch.")
@click.argument("bundle", type=FOLDER)
@TEXTS
@click.option(
    "--function",
    type=click.Choice(["softmax", "sigmoid", "none"]),
    help="From logits to scores; default what the model was trained for. none: a reward model's reward.",
)
@TRUNCATE
@BATCH
@THREADS
@on_device
@LINES
@one_sentence
def classify(
    bundle: Path,
    texts: tuple[str, ...],
    function: Any,
    truncate: bool,
    batch_size: int,
    threads: int | None,
    device: Device,
    engine: str | None,
    as_json: bool,
) -> None:
    """Say which label BUNDLE's model gives each of TEXTS, or each line of stdin, and how sure it is.

    Prints score, label and text, with tabs between them.
    """
    import llama_runtime

    classifier = llama_runtime.load_classifier(bundle, threads=threads, device=device, engine=engine)
    for batch in batches(texts, batch_size):
        found = classifier.classify(batch, function=function, truncate=truncate, batch_size=batch_size)
        for text, result in zip(batch, found, strict=True):
            line = f"{result.score:.4f}\t{result.label}\t{text}"
            click.echo(json.dumps(_facts(text, result), ensure_ascii=False) if as_json else line)


def _facts(text: str, result: Classification) -> dict[str, Any]:
    return {
        "text": text,
        "label": result.label,
        "score": result.score,
        "scores": [{"label": label, "score": score} for label, score in result.scores],
        "logits": result.logits.tolist(),
    }
