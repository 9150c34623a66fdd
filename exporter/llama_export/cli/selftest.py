"""``llama-export selftest``: known answers, replayed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llama_export.cli.command import FOLDER, JSON, THREADS, echo, on_device, one_sentence

if TYPE_CHECKING:
    from llama_runtime.opening import Device


@click.command(short_help="Replay a bundle's known answers on this machine.")
@click.argument("bundle", type=FOLDER)
@THREADS
@on_device
@JSON
@one_sentence
def selftest(bundle: Path, threads: int | None, device: Device, engine: str | None, as_json: bool) -> None:
    """Replay BUNDLE's known answers: does it compute here what it computed when it was exported?

    Needs neither PyTorch nor the checkpoint. Exit code 0: yes; 1: no, and what differs.
    """
    import llama_runtime

    report = llama_runtime.selftest(bundle, threads=threads, device=device, engine=engine)
    if as_json:
        facts = {
            "ok": report.ok,
            "answers": report.answers,
            "tokens": report.tokens,
            "near_ties_taken": report.near_ties_taken,
            "kernels": report.kernels,
            "largest_logit_difference": report.largest_logit_difference,
            "differences": [str(difference) for difference in report.differences],
        }
        echo(facts, as_json)
        sys.exit(0 if report.ok else 1)
    report.check()
    difference = report.largest_logit_difference
    measured = "" if difference is None else f", logits within {difference:.1e}"
    near = report.near_ties_taken
    measured += f", near ties decided otherwise: {near}" if near else ""
    both = "" if report.kernels is None else f", with our own kernels ({report.kernels}) and without"
    click.echo(f"ok: {report.answers} known answers, {report.tokens} tokens{measured}{both}")
