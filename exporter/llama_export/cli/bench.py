"""``llama-export bench``: how fast a bundle is here, and how much of the memory's speed that is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llama_export.cli.command import FOLDER, JSON, THREADS, echo, one_sentence
from llama_export.errors import BundleError

if TYPE_CHECKING:
    from llama_runtime.bench import BenchReport, Spread

_WIDTH, _HEIGHT, _MARGIN = 640, 260, 48


@click.command(short_help="Measure a bundle's speed and memory on this machine.")
@click.argument("bundle", type=FOLDER)
@click.option(
    "--prompt-tokens", type=int, default=128, show_default=True, help="Read before decoding is measured."
)
@click.option("--new-tokens", type=int, default=64, show_default=True, help="Decoded in each round.")
@click.option("--prefill-tokens", type=int, default=512, show_default=True,
              help="Of the prompt whose reading is measured.")  # fmt: skip
@click.option("--repeats", type=int, default=5, show_default=True, help="Rounds.")
@click.option("--profile", is_flag=True, help="Milliseconds of each operator in a decoded token.")
@click.option("--plot", type=FOLDER, help="Write the time of every decoded token to this .svg file.")
@THREADS
@JSON
@one_sentence
def bench(
    bundle: Path,
    prompt_tokens: int,
    new_tokens: int,
    prefill_tokens: int,
    repeats: int,
    profile: bool,
    plot: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure BUNDLE through the runtime's own generate(): random prompts, greedy, EOS ignored.

    The share of bandwidth is what a decoded token must read, weights and cache, over its time, beside what
    the same threads read when they do nothing else.
    """
    from llama_runtime.bench import bench as measure

    def show(doing: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{doing}", nl=False, err=True)

    report = measure(
        bundle,
        threads=threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        prefill_tokens=prefill_tokens,
        repeats=repeats,
        profile=profile,
        advance=show,
    )
    show("")
    if plot is not None:
        try:
            plot.write_text(_svg(report), encoding="utf-8")
        except OSError as error:
            raise BundleError(f"{plot}: cannot be written ({error.strerror})", "name another file") from None
    echo(report.to_dict() if as_json else _lines(report), as_json)


def _lines(report: BenchReport) -> list[str]:
    lines = [
        f"bundle     {report.bundle}: {report.precision}, {report.attention}, "
        f"{report.kernels or 'no'} kernels of our own, {report.threads} threads, "
        f"medians of {report.repeats} (least to most)",
        f"start      first token {_seconds(report.start_to_first_token_s)} after the process began, "
        f"load {report.load_s:.2f} s",
        f"prefill    {_numbers(report.prefill_tokens_per_s, 0)} tokens/s, {report.prefill_tokens} tokens",
        f"decode     {report.decode_tokens_per_s:.1f} tokens/s, {_numbers(report.decode_ms, 1)} ms a token, "
        f"{report.new_tokens} tokens behind {report.prompt_tokens}",
        f"bandwidth  {report.read_bytes_per_s / 1e9:.1f} GB/s can be read",
    ]
    if report.bandwidth_share is not None and report.step_bytes is not None:
        lines[-1] += f", {report.bandwidth_share:.0%} of it is: {report.step_bytes / 1e6:.0f} MB a token"
    if report.peak_private_bytes is not None:
        lines.append(f"memory     {report.peak_private_bytes / (1 << 20):.0f} MiB private at the peak")
    for name, ms in (report.profile or {}).items():
        lines.append(f"           {ms:8.3f} ms  {name}")
    return lines


def _numbers(spread: Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f} to {spread.most:.{digits}f})"


def _seconds(spread: Spread) -> str:
    return f"{spread.median:.2f} s ({spread.least:.2f} to {spread.most:.2f})"


def _svg(report: BenchReport) -> str:
    """Milliseconds of every token over its position, from zero on."""
    times, top = report.token_ms, max(report.token_ms) * 1.1

    def x(index: int) -> float:
        return _MARGIN + index * (_WIDTH - 2 * _MARGIN) / max(len(times) - 1, 1)

    def y(ms: float) -> float:
        return _HEIGHT - _MARGIN - ms / top * (_HEIGHT - 2 * _MARGIN)

    points = " ".join(f"{x(i):.1f},{y(ms):.1f}" for i, ms in enumerate(times))
    first, last = report.prompt_tokens, report.prompt_tokens + len(times) - 1
    texts = [
        (_MARGIN - 6, y(0), "end", "0"),
        (_MARGIN - 6, y(report.decode_ms.median), "end", f"{report.decode_ms.median:.1f}"),
        (_MARGIN, _HEIGHT - _MARGIN + 18, "middle", str(first)),
        (_WIDTH - _MARGIN, _HEIGHT - _MARGIN + 18, "middle", str(last)),
        (_WIDTH / 2, _HEIGHT - 8, "middle", "position"),
        (_MARGIN, 20, "start", f"ms a token, {report.precision}, {report.threads} threads"),
    ]
    labels = "".join(
        f'<text x="{left:.0f}" y="{base:.0f}" text-anchor="{anchor}">{text}</text>'
        for left, base, anchor, text in texts
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#333"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        f'<path d="M{_MARGIN} {y(0):.0f}H{_WIDTH - _MARGIN}" stroke="#999"/>'
        f'<polyline points="{points}" fill="none" stroke="#06c" stroke-width="1.5"/>{labels}</svg>\n'
    )
