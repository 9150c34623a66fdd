"""Plots as SVG, drawn here: a page that needs no network needs no library either."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 240, 56, 28, 10
_LEAST = 1e-10
_CELLS = 32  # side by side: more would be too small on a narrow screen


def log_chart(
    series: Sequence[Sequence[float]], limit: float, x_label: str, titles: Sequence[str] = ()
) -> str:
    """Lines over a logarithmic axis, with the limit dashed.

    Args:
        series: One line each; what is not finite stands at the top, in red.
        limit: What is allowed.
        x_label: What the points are.
        titles: Shown when the pointer rests on a point, the first line's.
    """
    finite = [value for line in series for value in line if math.isfinite(value)]
    high = math.ceil(math.log10(max([*finite, limit, _LEAST]) * 1.01))
    low = math.floor(math.log10(max(min([value for value in finite if value > 0] or [limit]), _LEAST)))
    longest = max(len(line) for line in series)

    def x(index: int) -> float:
        return _LEFT + (index + 0.5) * (_WIDTH - _LEFT - 8) / longest

    def y(value: float) -> float:
        exponent = high if not math.isfinite(value) else math.log10(max(value, 10.0**low))
        return _TOP + (high - exponent) / max(high - low, 1) * (_HEIGHT - _TOP - _BOTTOM)

    marks = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(10.0**e):.1f}" y2="{y(10.0**e):.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y(10.0**e) + 4:.1f}" text-anchor="end">1e{e}</text>'
        for e in range(low, high + 1, max(1, (high - low) // 6))
    ]
    marks.append(
        f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(limit):.1f}" y2="{y(limit):.1f}"/>'
        f'<text class="limit" x="{_WIDTH - 4}" y="{y(limit) - 4:.1f}" text-anchor="end">'
        f"allowed {limit:g}</text>"
    )
    for number, line in enumerate(series):
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(line))
        marks.append(f'<polyline class="line s{number % 4}" points="{points}"/>')
        for i, value in enumerate(line):
            red = "" if value <= limit else " red"
            title = f"{titles[i]}: {value:.2g}" if number == 0 and titles else f"{i}: {value:.2g}"
            marks.append(
                f'<circle class="dot s{number % 4}{red}" cx="{x(i):.1f}" cy="{y(value):.1f}" r="2.5">'
                f"<title>{escape(title)}</title></circle>"
            )
    marks.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{x_label}</text>')
    return _svg(_HEIGHT, marks)


def scatter(points: Sequence[tuple[float, float]]) -> str:
    """Candidate over reference: all on the diagonal where they agree."""
    shown = [(want, got) for want, got in points if math.isfinite(want) and math.isfinite(got)]
    values = [value for point in shown for value in point] or [0.0, 1.0]
    low, high = min(values), max(values)
    size, span = 360, (high - low) or 1.0

    def place(want: float, got: float) -> tuple[float, float]:
        scale = size - _LEFT - _BOTTOM
        return _LEFT + (want - low) / span * scale, size - _BOTTOM - (got - low) / span * scale

    (x0, y0), (x1, y1) = place(low, low), place(high, high)
    marks = [f'<line class="limit" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>']
    for point in shown:
        x, y = place(*point)
        marks.append(f'<circle class="dot s0" cx="{x:.1f}" cy="{y:.1f}" r="2"/>')
    marks += [
        f'<text x="{x0:.1f}" y="{size - 6}">{low:.3g}</text>',
        f'<text x="{x1:.1f}" y="{size - 6}" text-anchor="end">{high:.3g}, reference</text>',
        f'<text x="{_LEFT - 6}" y="{y1 + 8:.1f}" text-anchor="end">{high:.3g}</text>',
    ]
    return _svg(size, marks, width=size)


def cells(rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Rows of small squares, each with a class and what it says when the pointer rests on it."""
    side, top, marks = 14, 0, list[str]()
    for row in rows:
        for i, (kind, title) in enumerate(row):
            x, y = i % _CELLS * side + 1, top + i // _CELLS * side + 1
            marks.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{side - 2}" height="{side - 2}">'
                f"<title>{escape(title)}</title></rect>"
            )
        top += math.ceil(len(row) / _CELLS) * side + side // 2
    return _svg(top, marks, width=side * _CELLS)


def bars(named: Sequence[tuple[str, float]]) -> str:
    """One horizontal bar for each name."""
    line, most = 20, max([value for _, value in named if math.isfinite(value)] or [1.0]) or 1.0
    marks = []
    for number, (name, value) in enumerate(named):
        y = number * line
        share = 1.0 if not math.isfinite(value) else value / most
        marks.append(
            f'<rect class="bar" x="0" y="{y + 2}" width="{share * _WIDTH:.1f}" height="{line - 4}"/>'
        )
        marks.append(f'<text x="6" y="{y + 14}">{escape(name)}: {value:.3g}</text>')
    return _svg(line * len(named), marks)


def _svg(height: float, marks: Sequence[str], width: float = _WIDTH) -> str:
    # The text of what must shrink on a narrow screen is larger there.
    kind = ' class="wide"' if width == _WIDTH else ""
    shape = f'viewBox="0 0 {width} {height}" style="max-width:{width}px"'
    return f'<svg{kind} {shape} role="img">{"".join(marks)}</svg>'
