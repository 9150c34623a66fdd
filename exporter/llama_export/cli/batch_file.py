"""``llama-export run --batch``: JSONL of prompts in, JSONL of answers out, resumed where it broke off.

Lines are answered side by side, as rows of one batch, and written in their order.

A line in: ``{"prompt": "..."}`` or ``{"messages": [...], "tools": [...]}``, and if wanted ``"id"`` and
``"options"``, which win over the command line's. A line out: ``line`` and ``id``, then the generation or
``error``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from llama_export.cli.generation import facts
from llama_export.errors import LlamaExportError, OptionError
from llama_runtime import Batch, Conversation, Generation, Generator, Request, SamplingOptions
from llama_runtime.errors import LlamaRuntimeError
from llama_runtime.row import Row

FIELDS = {"prompt", "messages", "tools", "id", "options"}
OPTION_NAMES = {field.name for field in fields(SamplingOptions)}
NEEDS = 'needs an object with "prompt" or "messages"'
ANOTHER = "name another output"
DIGEST_CHARACTERS = 16
ROWS = 8
LOT = 256  # lines are read into rows so many at a time; the longest of them says how long a row is


@dataclass(frozen=True)
class Line:
    """One line of the input, from 1."""

    number: int
    content: bytes

    @property
    def digest(self) -> str:
        """What ties an answer to its line: a resumed batch must not mix two inputs."""
        return hashlib.sha256(self.content.strip()).hexdigest()[:DIGEST_CHARACTERS]


def run_batch_file(
    source: Path, output: Path, generator: Generator, options: SamplingOptions, rows: int = ROWS
) -> tuple[int, int]:
    """Answer every line of a file that has no answer yet.

    Args:
        source: JSONL.
        output: JSONL; what an earlier run left is kept, a line cut short apart.
        generator: Answers.
        options: For lines that say nothing else.
        rows: The most that are answered side by side; each takes memory for its keys and values.

    Returns:
        How many lines were answered now, and how many of these were refused.

    Raises:
        OptionError: A file cannot be read or written, or the output belongs to another input.
    """
    # Here: what draws bars would cost every command a twentieth of a second.
    from llama_export.progress import item_progress

    lines = _read_lines(source)
    answered = _resume(output, {line.number: line.digest for line in lines}, source)
    left = [line for line in lines if line.number not in answered]
    refused = 0
    with _appending(output) as file, item_progress(source.name, len(left)) as advance:
        for begin in range(0, len(left), LOT):
            for found in _answers(left[begin : begin + LOT], generator, options, rows):
                refused += "error" in found
                file.write(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                file.flush()
                advance(1)
    return len(left), refused


def _answers(
    lines: list[Line], generator: Generator, options: SamplingOptions, rows: int
) -> Iterator[dict[str, Any]]:
    """Answer some lines; each comes as soon as it and those before it are done."""
    begun = [_begin(line, generator, options) for line in lines]
    wanted = [row for _, row in begun if isinstance(row, Row)]
    if wanted:
        longest = max(len(row.prompt_tokens) + row.options.max_new_tokens for row in wanted)
        batch = Batch(generator, rows=min(rows, len(wanted)), row_tokens=longest)
    for about, outcome in [(a, batch.submit_row(o) if isinstance(o, Row) else o) for a, o in begun]:
        while isinstance(outcome, Request) and not outcome.done:
            batch.step()
        yield about | _facts(outcome.result() if isinstance(outcome, Request) else outcome)


def _begin(
    line: Line, generator: Generator, options: SamplingOptions
) -> tuple[dict[str, Any], Row | Generation | LlamaRuntimeError | LlamaExportError]:
    """What is known about a line, and its row; what no row can say is generated or refused at once."""
    about: dict[str, Any] = {"line": line.number, "input_sha256": line.digest}
    try:
        record = _parse(line)
        if "id" in record:
            about["id"] = record["id"]
        chosen = _options(record.get("options", {}), options)
        if "messages" in record:
            chat = Conversation(generator, messages=record["messages"], tools=record.get("tools"))
            return about, chat.new_row(None, chosen)
        if chosen.num_beams > 1 or chosen.num_return_sequences > 1:
            return about, generator.generate(record["prompt"], chosen)
        return about, generator.new_row(record["prompt"], chosen)
    except (LlamaRuntimeError, LlamaExportError) as error:
        return about, error


def _facts(outcome: Generation | LlamaRuntimeError | LlamaExportError) -> dict[str, Any]:
    if isinstance(outcome, Generation):
        return facts(outcome)
    return {"error": outcome.message} | ({"hint": outcome.hint} if outcome.hint else {})


def _options(changes: object, options: SamplingOptions) -> SamplingOptions:
    if not isinstance(changes, dict) or (unknown := sorted(set(changes) - OPTION_NAMES)):
        named = ", ".join(unknown) if isinstance(changes, dict) else repr(changes)[:60]
        raise OptionError(f"options is or holds {named}, needs names of sampling options")
    if isinstance(changes.get("stop"), list):
        changes = changes | {"stop": tuple(changes["stop"])}
    try:
        return replace(options, **changes)
    except TypeError as error:
        raise OptionError(f"options: {error}") from None


def _parse(line: Line) -> dict[str, Any]:
    try:
        record = json.loads(line.content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise OptionError(f"byte {error.start} of the line is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise OptionError(f"the line is not JSON ({error})") from None
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        raise OptionError(f"the line is {json.dumps(record)[:60]}, {NEEDS}")
    if unknown := sorted(set(record) - FIELDS):
        raise OptionError(f"the line has {', '.join(unknown)}, known are {', '.join(sorted(FIELDS))}")
    if not isinstance(record.get("prompt", ""), str | list):
        raise OptionError(f"prompt is {json.dumps(record['prompt'])[:60]}, needs text or token ids")
    return record


def _read_lines(source: Path) -> list[Line]:
    try:
        contents = source.read_bytes().split(b"\n")
    except OSError as error:
        raise OptionError(f"{source}: cannot be read ({error.strerror})", "name a JSONL file") from None
    return [Line(number, content) for number, content in enumerate(contents, start=1) if content.strip()]


def _resume(output: Path, digests: dict[int, str], source: Path) -> set[int]:
    """The lines that have their answers; cuts off what an interrupted run left half-written."""
    if not output.exists():
        return set()
    try:
        content = output.read_bytes()
    except OSError as error:
        raise OptionError(f"{output}: cannot be read ({error.strerror})", ANOTHER) from None
    whole = content.rpartition(b"\n")[0]
    answered: set[int] = set()
    for index, text in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            found = json.loads(text)
            number, digest = found["line"], found["input_sha256"]
        except (ValueError, KeyError, TypeError):
            raise OptionError(f"{output}: line {index} is no answer of a batch", ANOTHER) from None
        if digests.get(number) != digest:
            hint = "name another output, or the input that it was made from"
            raise OptionError(f"{output}: line {index} answers another input than {source} has", hint)
        answered.add(number)
    if len(whole) + 1 < len(content) or (whole == b"" and content):
        os.truncate(output, len(whole) + 1 if whole else 0)
    return answered


@contextmanager
def _appending(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("ab")
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror})", ANOTHER) from None
    with file:
        yield file
