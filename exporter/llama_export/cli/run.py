"""``llama-export run``: text from a bundle, once, for every line, for a file, or as a chat."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from llama_export.cli.batch_file import ROWS, run_batch_file
from llama_export.cli.chat import Terminal
from llama_export.cli.command import FOLDER, JSON, THREADS, echo, on_device, one_sentence
from llama_export.cli.generation import facts, shown
from llama_export.cli.lines import answer_lines
from llama_export.cli.sampling_options import parse_json, read_options, read_text, sampling_options
from llama_export.errors import OptionError

if TYPE_CHECKING:
    from llama_runtime import Conversation, Generator, SamplingOptions
    from llama_runtime.opening import Device

Overflow = Literal["error", "drop_oldest"]
CHAT_TOKENS = 512


@click.command(short_help="Continue a prompt or chat, without PyTorch.")
@click.argument("bundle", type=FOLDER)
@click.argument("prompt", required=False)
@click.option("--chat", is_flag=True, help="Talk with the model, through its chat template; /help says how.")
@click.option("--system", help="With --chat: the system message.")
@click.option("--tools", type=FOLDER, metavar="FILE", help="With --chat: a JSON list of tools.")
@click.option("--template", help="With --chat: the name of one of the bundle's chat templates.")
@click.option("--overflow", type=click.Choice(["error", "drop-oldest"]), default="error", show_default=True,
              help="With --chat: what to do when the chat is longer than the model.")  # fmt: skip
@click.option("--session", type=FOLDER, metavar="FILE",
              help="With --chat: go on from this file if it is there, and save the chat to it.")  # fmt: skip
@click.option("--stdin", "from_lines", is_flag=True, help="Every line of stdin is a prompt, or a turn.")
@click.option("--batch", type=FOLDER, metavar="FILE", help="JSONL of prompts or messages; needs --output.")
@click.option("--output", type=FOLDER, metavar="FILE", help="Of --batch; what it lacks is done.")
@click.option("--rows", type=click.IntRange(min=1), default=ROWS, show_default=True,
              help="Of --batch: how many lines are answered side by side.")  # fmt: skip
@sampling_options
@THREADS
@on_device
@JSON
@one_sentence
def run(
    bundle: Path,
    prompt: str | None,
    batch: Path | None,
    output: Path | None,
    rows: int,
    from_lines: bool,
    threads: int | None,
    device: Device,
    engine: str | None,
    as_json: bool,
    chat: bool,
    system: str | None,
    tools: Path | None,
    template: str | None,
    overflow: str,
    session: Path | None,
    **values: Any,
) -> None:
    """Continue PROMPT, or the text on stdin, with BUNDLE's model. Needs no PyTorch.

    Greedy unless a temperature is given. One line break at the end of stdin is not part of the prompt.
    """
    import llama_runtime

    _check_modes(prompt, chat, from_lines, batch, output, (system, tools, template, session))
    options = read_options(values)
    schemas = None if tools is None else parse_json(tools, read_text(tools))
    generator = llama_runtime.load(bundle, threads=threads, device=device, engine=engine)
    if batch and output:
        _run_batch(batch, output, generator, options, rows, as_json)
    elif chat:
        if values["max_new_tokens"] is None:
            most = generator.manifest.limits.max_position_embeddings // 4
            options = read_options(values | {"max_new_tokens": max(1, min(CHAT_TOKENS, most))})
        policy: Overflow = "drop_oldest" if overflow == "drop-oldest" else "error"
        talk = llama_runtime.Conversation(
            generator, system=system, tools=schemas, template=template, overflow=policy
        )
        _chat(talk, options, prompt, from_lines, session, as_json)
    elif from_lines:
        sys.exit(0 if answer_lines(lambda line: generator.generate(line, options), as_json) else 2)
    else:
        _once(generator, _read_prompt() if prompt is None else prompt, options, as_json)


def _once(generator: Generator, prompt: str, options: SamplingOptions, as_json: bool) -> None:
    several = options.num_return_sequences > 1
    if as_json or several or options.num_beams > 1:
        found = generator.generate_sequences(prompt, options)
        if as_json:
            echo([facts(done) for done in found] if several else facts(found[0]), as_json)
        else:
            click.echo("\n\n".join(shown(done.text) for done in found))
        return
    for piece in generator.stream(prompt, options):
        click.echo(shown(piece.text), nl=False)
    click.echo()


def _chat(
    talk: Conversation,
    options: SamplingOptions,
    prompt: str | None,
    from_lines: bool,
    session: Path | None,
    as_json: bool,
) -> None:
    if session and session.exists():
        talk.restore(session)
    try:
        if from_lines:
            sys.exit(0 if answer_lines(lambda line: talk.send(line, options), as_json) else 2)
        if as_json:
            echo(facts(talk.send(_read_prompt() if prompt is None else prompt, options)), as_json)
        elif prompt is not None:
            Terminal(talk, options).answer(prompt)
        else:
            Terminal(talk, options).run()
    finally:
        if session:
            talk.save(session)


def _run_batch(
    source: Path, output: Path, generator: Generator, options: SamplingOptions, rows: int, as_json: bool
) -> None:
    answered, refused = run_batch_file(source, output, generator, options, rows)
    if as_json:
        echo({"output": str(output), "answered": answered, "refused": refused}, as_json)
    else:
        click.echo(f"{output}: {answered} lines answered, {refused} of them refused", err=True)
    sys.exit(2 if refused else 0)


def _check_modes(
    prompt: str | None,
    chat: bool,
    from_lines: bool,
    batch: Path | None,
    output: Path | None,
    of_chat: tuple[Any, ...],
) -> None:
    if (batch is None) != (output is None):
        raise OptionError("--batch and --output are given one without the other", "name both files")
    sources = [
        name for name, given in (("PROMPT", prompt), ("--stdin", from_lines), ("--batch", batch)) if given
    ]
    if len(sources) > 1:
        raise OptionError(f"{' and '.join(sources)} are given, needs one of them", "leave the others out")
    if batch and chat:
        raise OptionError("--batch with --chat: the file says it", 'write "messages" in place of "prompt"')
    if not chat and any(of_chat):
        raise OptionError("--system, --tools, --template and --session are for --chat", "add --chat")


def _read_prompt() -> str:
    if sys.stdin.isatty():
        click.echo("prompt, ended by Ctrl-D on a line of its own:", err=True)
    try:
        prompt = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(
            f"stdin: byte {error.start} is not UTF-8, the prompt must be", "convert it first"
        ) from None
    return prompt.removesuffix("\n")  # what echo and editors append
