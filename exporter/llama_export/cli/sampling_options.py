"""Every field of ``SamplingOptions`` as an option of the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from llama_export.cli.command import FOLDER
from llama_export.errors import OptionError
from llama_runtime import SamplingOptions

DEFAULTS = {field.name: field.default for field in dataclasses.fields(SamplingOptions)}
# Flags, type, help; a flag's name is the field's.
VALUES: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (("-n", "--max-new-tokens"), int, "Stop after so many tokens."),
    (("--min-new-tokens",), int, "Do not end before so many."),
    (("--temperature",), float, "0 is greedy."),
    (("--top-k",), int, "Draw from the k likeliest only; 0: from all."),
    (("--top-p",), float, "Draw from the smallest set this likely."),
    (("--min-p",), float, "Draw from those at least this share as likely as the likeliest."),
    (("--repetition-penalty",), float, "Above 1: less of what prompt and text have."),
    (("--presence-penalty",), float, "Taken from every token that the text has."),
    (("--frequency-penalty",), float, "The same, for each time it has it."),
    (("--no-repeat-ngram-size",), int, "No so many tokens twice in the same order; 0: no rule."),
    (("--seed",), int, "Makes a drawn text repeatable."),
    (("--num-beams",), int, "Above 1: search for the likeliest text, so many at a time."),
    (("--length-penalty",), float, "Of a beam search: above 0 favours longer texts."),
    (("--early-stopping",), click.Choice(["true", "false", "never"]), "When a beam search may end."),
    (("--num-return-sequences",), int, "How many texts to return."),
    (("--logprobs",), int, "With --json: log-probabilities, and those of so many likeliest tokens."),
    (("--prompt-lookup-num-tokens",), int, "Read so many tokens ahead where the text repeats itself."),
    (("--regex",), str, "The text matches this regular expression."),
)
FILES = {
    "json_schema": "The text is JSON that conforms to this schema.",
    "grammar": "The text conforms to this grammar in Lark's notation.",
}


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, which gets them as ``**options`` for ``read_options``."""
    flags = [
        click.option(*names, type=kind, help=help_text + _default(names[-1]))
        for names, kind, help_text in VALUES
    ]
    flags += [
        click.option(_flag(name), type=FOLDER, metavar="FILE", help=help_text)
        for name, help_text in FILES.items()
    ]
    flags += [
        click.option("--logit-bias", multiple=True, metavar="TOKEN=BIAS",
                     help="Added to a token id's logit; -inf forbids it. May be given more than once."),
        click.option("--stop", multiple=True, help="End before this string; may be given more than once."),
        click.option("--ignore-eos", is_flag=True, help="Go on after the model's end."),
        click.option("--return-full-text", is_flag=True, help="The text begins with the prompt."),
    ]  # fmt: skip
    for flag in reversed(flags):
        command = flag(command)
    return command


def read_options(values: dict[str, Any]) -> SamplingOptions:
    """Make ``SamplingOptions`` of what the command line gave; what it did not give keeps its default.

    Raises:
        OptionError: A file cannot be read, or a value is out of range.
    """
    # By identity, since 0 equals False: a seed of 0 is given.
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    given = {name: value for name, value in given.items() if value != ()}
    if "logit_bias" in given:
        given["logit_bias"] = dict(map(_bias, given["logit_bias"]))
    if "early_stopping" in given:
        given["early_stopping"] = {"true": True, "false": False}.get(given["early_stopping"], "never")
    for name in FILES:
        if name in given:
            given[name] = read_text(given[name])
    if "json_schema" in given:
        given["json_schema"] = parse_json(values["json_schema"], given["json_schema"])
    return SamplingOptions(**given)


def read_text(path: Path) -> str:
    """A UTF-8 file's text.

    Raises:
        OptionError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror})", "name a text file") from None
    except UnicodeDecodeError as error:
        raise OptionError(f"{path}: byte {error.start} is not UTF-8", "convert it first") from None


def parse_json(path: Path, text: str) -> Any:
    """Parse a file's JSON.

    Raises:
        OptionError: It is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path}: not JSON ({error})", "correct the file") from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _default(flag: str) -> str:
    default = DEFAULTS[flag.removeprefix("--").replace("-", "_")]
    return "" if default is None else f"  [default: {str(default).lower()}]"


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise OptionError(
            f"--logit-bias is {text!r}, needs TOKEN=BIAS", "write --logit-bias 42=-inf"
        ) from None
