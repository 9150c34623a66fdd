"""The command line: each command is a few lines over the Python functions of the same name."""

from __future__ import annotations

import atexit
import gc

import click

from llama_export.cli.answer import answer
from llama_export.cli.bench import bench
from llama_export.cli.classify import classify
from llama_export.cli.convert import convert
from llama_export.cli.embed import embed
from llama_export.cli.inspect import inspect
from llama_export.cli.onnx import onnx
from llama_export.cli.run import run
from llama_export.cli.selftest import selftest
from llama_export.cli.tag import tag
from llama_export.cli.trt import trt
from llama_export.cli.verify import verify


class InOrder(click.Group):
    """Lists the commands in the order of this file, which is that of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Not sorted by name."""
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="llama-export", prog_name="llama-export")
def main() -> None:
    """Any LLaMA checkpoint in, one bundle out, that runs without PyTorch and is proven equal to it.

    \b
      llama-export inspect my-llama            what it is, and whether it can be exported
      llama-export onnx my-llama               a bundle in artifacts/my-llama, verified
      llama-export run artifacts/my-llama "Once upon a time"
      llama-export selftest artifacts/my-llama on any machine, without the checkpoint

    Exit codes: 0 done, 1 a bundle computes something else than its reference, 2 bad input.
    """  # noqa: D301  (the \\b that keeps the lines apart is click's, and must be a real one)
    # Python's end walks once more over all that is left: most of a second behind PyTorch and a traced graph.
    atexit.register(gc.freeze)


for command in (onnx, trt, convert, verify, inspect, run, embed, classify, tag, answer, selftest, bench):
    main.add_command(command)
