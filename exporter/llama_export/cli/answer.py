"""``llama-export answer``: a span of a text that answers a question."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llama_export.cli.command import FOLDER, THREADS, on_device, one_sentence
from llama_export.cli.texts import BATCH, LINES, stdin_lines
from llama_export.errors import OptionError

if TYPE_CHECKING:
    from llama_runtime.opening import Device


@click.command(short_help="Answer questions from texts with a bundle, without PyTorch.")
@click.argument("bundle", type=FOLDER)
@click.argument("question", required=False)
@click.argument("context", required=False)
@click.option(
    "--max-answer-tokens",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="The longest answer.",
)
@BATCH
@THREADS
@on_device
@LINES
@one_sentence
def answer(
    bundle: Path,
    question: str | None,
    context: str | None,
    max_answer_tokens: int,
    batch_size: int,
    threads: int | None,
    device: Device,
    engine: str | None,
    as_json: bool,
) -> None:
    """Find the answer to QUESTION in the text CONTEXT with BUNDLE's model.

    Without them, each line of stdin is a JSON object with "question" and "context". Prints score, start,
    end and the answer with tabs between them.
    """
    import llama_runtime

    if question is not None and context is None:
        raise OptionError("a question without a context, needs both", "name the text to answer from, too")
    answerer = llama_runtime.load_answerer(bundle, threads=threads, device=device, engine=engine)
    given = [(question, context)] if question is not None and context is not None else None
    pairs = iter(given) if given else (_pair(number, line) for number, line in enumerate(stdin_lines(), 1))
    while batch := list(islice(pairs, batch_size)):
        found = answerer.answer(batch, max_answer_tokens=max_answer_tokens, batch_size=batch_size)
        for (asked, _), item in zip(batch, found, strict=True):
            if as_json:
                facts = {"question": asked, "answer": item.text} | dataclasses.asdict(item)
                del facts["text"]
                click.echo(json.dumps(facts, ensure_ascii=False))
            else:
                click.echo(f"{item.score:.4f}\t{item.start}\t{item.end}\t{item.text}")


def _pair(number: int, line: str) -> tuple[str, str]:
    try:
        facts = json.loads(line)
        question, context = facts["question"], facts["context"]
    except (ValueError, KeyError, TypeError):
        question = context = None
    if not isinstance(question, str) or not isinstance(context, str):
        raise OptionError(
            f"stdin: line {number} is {line[:60]!r}, needs a JSON object with question and context"
        )
    return question, context
