"""Whatever README.md shows can be typed: its commands parse, and its files and targets exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from llama_export.cli import main

REPO = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(?:bash|sh|console|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^\$ ")


def commands(text: str) -> list[str]:
    """The lines that a person would type: those behind ``$`` where there are any, else all of a block."""
    found = []
    for block in BLOCK.findall(text):
        joined = block.replace("\\\n", " ")
        lines = joined.splitlines()
        typed = [line for line in lines if PROMPT.match(line)] or lines
        found += [PROMPT.sub("", line).strip() for line in typed if line.strip()]
    return [line for line in found if not line.startswith("#")]


def calls(text: str, program: str) -> list[list[str]]:
    """The arguments of every call of a program, alone or behind a pipe, redirections left out."""
    found = []
    for line in commands(text):
        words = shlex.split(line, comments=True)
        for start in [i for i, word in enumerate(words) if Path(word).name == program]:
            rest = words[start + 1 :]
            ends = [i for i, word in enumerate(rest) if word in ("|", ">", ">>", "<", "2>", "&&", ";", "&")]
            found.append(rest[: ends[0]] if ends else rest)
    return found


def parse(arguments: list[str]) -> None:
    """Parse a command line without running it."""
    with main.make_context("llama-export", list(arguments)) as context:
        rest = [*context._protected_args, *context.args]
        name, command, rest = main.resolve_command(context, rest)
        command.make_context(name, rest, parent=context)


@pytest.fixture(scope="module")
def readme() -> str:
    return (REPO / "README.md").read_text(encoding="utf-8")


def test_its_commands_parse(readme):
    found = calls(readme, "llama-export")
    assert found, "README.md shows no llama-export command"
    for arguments in found:
        try:
            parse(arguments)
        except click.exceptions.Exit:
            pass  # --help and --version
        except click.UsageError as error:
            pytest.fail(f"llama-export {shlex.join(arguments)}: {error.format_message()}")


def test_its_make_targets_exist(readme):
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for arguments in calls(readme, "make"):
        wanted = {word for word in arguments if "=" not in word and not word.startswith("-")}
        assert wanted <= targets


def test_its_relative_links_lead_somewhere(readme):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", readme):
        if "://" not in link and not link.startswith("mailto:"):
            assert (REPO / link).exists(), link


def test_the_reader_itself():
    text = "```bash\nmake demo   # first\nllama-export onnx a \\\n  --force | cat\n```\n"
    text += "```python\nllama-export x\n```\n"
    text += "```console\n$ echo hi | .venv/bin/llama-export run b\nllama-export is no command here\n```\n"
    assert calls(text, "llama-export") == [["onnx", "a", "--force"], ["run", "b"]]
    assert calls(text, "make") == [["demo"]]
    parse(["onnx", "a", "--force"])
    with pytest.raises(click.UsageError):
        parse(["onnx", "a", "--no-such-option"])
    with pytest.raises(click.UsageError):
        parse(["nonesuch"])
