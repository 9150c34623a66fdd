"""What the commands share: common options, errors as one sentence, data to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from llama_export.errors import LlamaExportError
from llama_runtime.errors import LlamaRuntimeError

FOLDER = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON to stdout.")
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; default every physical core."
)


def on_device(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say where a bundle runs; the command gets them as ``device`` and ``engine``."""
    engine = click.option("--engine", metavar="NAME", help="Of --device tensorrt: which of several engines.")
    device = click.option(
        "--device",
        type=click.Choice(["cpu", "cuda", "tensorrt"]),
        default="cpu",
        show_default=True,
        help="cpu, cuda: the bundle's graph in ONNX Runtime. tensorrt: an engine of `llama-export trt`.",
    )
    return device(engine(command))


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Turn every error that a person can cause into one sentence, a hint and an exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (LlamaExportError, LlamaRuntimeError) as error:
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:
            # The reader of our output has gone; a second error on closing stdout helps nobody.
            sys.stdout = None
            sys.exit(141)

    return wrapped


def echo(content: Any, as_json: bool) -> None:
    """Print data as JSON, or lines as they are."""
    click.echo(json.dumps(content, indent=2, default=str) if as_json else "\n".join(content))
