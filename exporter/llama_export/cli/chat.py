"""``llama-export run --chat``: a chat in a terminal, or line by line through a pipe."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from llama_export.cli.generation import shown
from llama_export.errors import LlamaExportError, OptionError
from llama_runtime import Conversation, Piece, SamplingOptions
from llama_runtime.errors import LlamaRuntimeError

HELP = """\
/help           this
/reset          forget everything but the system message
/retry          answer the last message again
/system TEXT    begin anew with another system message
/save FILE      write history and cache to a file
/load FILE      go on from such a file
/exit           leave (Ctrl-D does it too)
Ctrl-C ends an answer; a backslash at a line's end goes on in the next line."""
HISTORY = Path("llama-export/chat_history")


class Terminal:
    """Reads messages and commands until the end, and prints the answers."""

    def __init__(self, chat: Conversation, options: SamplingOptions) -> None:
        self._chat = chat
        self._options = options
        self._interactive = sys.stdin.isatty()
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: click.echo(HELP, err=True),
            "/reset": self._reset,
            "/retry": self._retry,
            "/system": self._system,
            "/save": lambda file: chat.save(_file(file, "/save")),
            "/load": lambda file: chat.restore(_file(file, "/load")),
        }

    def run(self) -> None:
        """Talk until /exit or the end of the input."""
        with _line_editing(self._interactive):
            if self._interactive:
                _note("/help says what else there is; /exit or Ctrl-D ends")
            while (line := self._read()) is not None:
                if line.strip() in ("/exit", "/quit"):
                    return
                if line.strip():
                    self._take(line)

    def _take(self, line: str) -> None:
        word, _, rest = line.strip().partition(" ")
        try:
            if word in self._commands:
                self._commands[word](rest.strip())
            elif word.startswith("/") and word[1:].isalpha():
                click.echo(f"no such command: {word}; /help lists them", err=True)
            else:
                self.answer(line)
        except (LlamaRuntimeError, LlamaExportError) as error:
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)

    def answer(self, message: str | None) -> None:
        """Print the answer as it comes; an interrupt ends it, and what was said stays in the history."""
        pieces: list[Piece] = []
        stream = self._chat.stream(message, self._options)
        try:
            for piece in stream:
                pieces.append(piece)
                click.echo(shown(piece.text), nl=False)
            note = f"cut off after {len(pieces)} tokens" if pieces[-1].finish_reason == "length" else ""
        except KeyboardInterrupt:
            note = "interrupted"
        finally:
            stream.close()  # type: ignore[attr-defined]
        click.echo()
        if self._interactive and note:
            _note(note)

    def _read(self) -> str | None:
        """The next message; None at the end. At the prompt, an interrupt begins the line anew."""
        lines: list[str] = []
        while True:
            try:
                line = self._line("... " if lines else "> ")
            except KeyboardInterrupt:
                click.echo(err=True)
                lines.clear()
                continue
            if line is None:
                return "\n".join(lines) or None
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(lines)

    def _line(self, prompt: str) -> str | None:
        if not self._interactive:
            # Bytes that are not UTF-8 become surrogates, which a conversation refuses by name.
            line = sys.stdin.buffer.readline().decode("utf-8", "surrogateescape")
            return line.removesuffix("\n").removesuffix("\r") if line else None
        try:
            return input(prompt)
        except EOFError:
            click.echo()
            return None

    def _reset(self, _: str) -> None:
        self._chat.reset()

    def _system(self, text: str) -> None:
        self._chat.messages = [{"role": "system", "content": text}] if text else []
        self._chat.reset()

    def _retry(self, _: str) -> None:
        users = [i for i, message in enumerate(self._chat.messages) if message["role"] == "user"]
        if not users:
            click.echo("nothing has been said yet", err=True)
            return
        kept = self._chat.messages
        self._chat.messages = list(kept[: users[-1] + 1])
        try:
            self.answer(None)
        except LlamaRuntimeError:
            self._chat.messages = kept
            raise


def _note(text: str) -> None:
    click.echo(click.style(text, dim=True), err=True)


def _file(argument: str, command: str) -> Path:
    try:
        names = shlex.split(argument)
    except ValueError:  # an apostrophe that opens no quotation
        names = [argument]
    if len(names) != 1:
        raise OptionError(f"{command} has {argument!r}, needs one file's name")
    return Path(names[0]).expanduser()


@contextlib.contextmanager
def _line_editing(interactive: bool) -> Iterator[None]:
    """Arrow keys and a history that outlives the program, where the platform has readline."""
    if not interactive:
        yield
        return
    try:
        import readline
    except ImportError:  # Windows: the console edits by itself.
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    file = Path(state) / HISTORY
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
            file.chmod(0o600)
