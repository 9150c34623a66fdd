"""The report as a page: one file that opens from disk, on a wide screen and a narrow one, light or dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from llama_export.parity import plots
from llama_export.parity.report import Outcome, Report, TensorDifference

_SHOWN_TENSORS = 30
_STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1c;--soft:#6b6b6b;--paper:#fff;--rule:#ddd;--ok:#1a7f37;
--red:#c62828;--a:#2563a8;--b:#a8642a;--c:#5b3fa8;--d:#2a8a84}@media(prefers-color-scheme:dark){:root{
--ink:#e6e6e6;--soft:#a0a0a0;--paper:#161616;--rule:#3a3a3a;--ok:#4cc26b;--red:#ff7b72;--a:#7ab3ee;
--b:#e0a070;--c:#b39cf0;--d:#6fd0c9}}body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--paper);max-width:60rem;margin:0 auto;padding:1rem}h1{font-size:1.4rem}h2{
font-size:1.05rem;margin:2rem 0 .3rem}p{margin:.3rem 0}.soft{color:var(--soft)}.ok{color:var(--ok)}.red{
color:var(--red)}table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;
padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--rule)}td.n{text-align:right;
font-variant-numeric:tabular-nums;white-space:nowrap}svg{width:100%;height:auto;
display:block}svg text{font-size:11px;fill:var(--soft)}.grid{stroke:var(--rule)}line.limit{
stroke:var(--red);stroke-dasharray:5 4}svg text.limit{fill:var(--red)}.line{fill:none;stroke-width:1.2}
.line.s0{stroke:var(--a)}.line.s1{stroke:var(--b)}.line.s2{stroke:var(--c)}.line.s3{stroke:var(--d)}
.dot.s0{fill:var(--a)}.dot.s1{fill:var(--b)}.dot.s2{fill:var(--c)}.dot.s3{fill:var(--d)}.dot.red{
fill:var(--red)}rect.same{fill:var(--ok)}rect.other{fill:var(--red)}rect.bar{fill:var(--a);opacity:.35}
@media(max-width:40rem){table,tbody,tr,td{display:block}tr.head{display:none}tr{
border-bottom:1px solid var(--rule);padding:.4rem 0}td{border:0;padding:0}td.n{display:inline;
text-align:left;margin-right:.7rem}td:empty{display:none}svg.wide text{font-size:17px}}
"""


def page(report: Report, bundle: str) -> str:
    """Draw a report.

    Args:
        report: What was measured.
        bundle: What it is of, for the title.

    Returns:
        HTML that refers to nothing outside of itself.
    """
    same = "equal to the reference" if report.reference else "as at export"
    verdict = same if report.passed else f"differs: {report.first_failure()}"
    mark = "ok" if report.passed else "red"
    tokens = f"{report.tokens_compared} greedy tokens, {report.near_ties} near ties, "
    body = [
        f"<h1>Parity of {escape(bundle)}</h1>",
        f'<p class="{mark}"><b>{escape(verdict)}</b></p>',
        f'<p class="soft">Reference: {escape(report.reference or "the known answers of the bundle")}. '
        f"{tokens if report.tokens_compared else ''}{report.seconds:.1f} s.</p>",
        *(f"<p>{escape(note)}</p>" for note in report.notes),
        *([f'<p class="red">{escape(report.blame.sentence)}</p>'] if report.blame else []),
        _rungs(report.rungs),
        *_drawn(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Parity of {escape(bundle)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _rungs(rungs: tuple[Outcome, ...]) -> str:
    rows = []
    for rung in rungs:
        state, kind = (
            ("green", "ok") if rung.passed else ("RED", "red") if rung.red else ("not measured", "soft")
        )
        measured = "" if rung.measured is None else f"{rung.measured:.2g}"
        allowed = "" if rung.tolerance is None else f"&le; {rung.tolerance:g}"
        reason = (
            f'<br><span class="soft">{escape(rung.unit)}; {escape(rung.reason)}</span>' if rung.reason else ""
        )
        rows.append(
            f'<tr><td><b>{escape(rung.name)}</b></td><td class="{kind}">{state}</td>'
            f'<td class="n">{measured}</td>'
            f'<td class="n soft">{allowed}</td><td>{escape(rung.detail)}{reason}</td></tr>'
        )
    head = '<tr class="head"><th>rung</th><th></th><th>measured</th><th>allowed</th><th>over</th></tr>'
    return f"<h2>The ladder, lowest rung first</h2><table>{head}{''.join(rows)}</table>"


def _drawn(report: Report) -> Iterator[str]:
    data = report.plots
    limit = next((rung.tolerance for rung in report.rungs if rung.name == "prefill"), None) or 1e-4
    if data.layers:
        names = [entry.tensor for entry in data.layers]
        chart = plots.log_chart(
            [[e.error for e in data.layers]], limit, "tensors, in the order of computation", names
        )
        yield (
            "<h2>Error by layer</h2><p>Largest difference, as a fraction of the tensor's largest value.</p>"
            + chart
        )
    if data.positions:
        chart = plots.log_chart(data.positions, limit, "position")
        yield "<h2>Error by position</h2><p>Largest logit difference of each prompt's tokens.</p>" + chart
    if data.tokens:
        rows = [
            [
                (
                    "same" if c.chosen == c.wanted else "other",
                    f"chosen {c.chosen}, reference {c.wanted}, margin {c.margin:.3g}",
                )
                for c in row
            ]
            for row in data.tokens
        ]
        yield "<h2>Greedy tokens</h2><p>One square a token: the same, or another.</p>" + plots.cells(rows)
    if data.logits:
        drawn = "Logits, or what the head gives: candidate over reference."
        yield f"<h2>Outputs</h2><p>{drawn}</p>" + plots.scatter(data.logits)
    if data.tensors:
        worst = sorted(data.tensors, key=lambda t: (-t.differing, -t.largest))[:_SHOWN_TENSORS]
        named = [(t.name + _wrong(t), t.largest) for t in worst]
        yield (
            "<h2>Weights by tensor</h2><p>Largest difference from the unrounded checkpoint.</p>"
            + plots.bars(named)
        )


def _wrong(tensor: TensorDifference) -> str:
    return f", {tensor.differing:,} of {tensor.values:,} wrong" if tensor.differing else ""
