"""The tenth turn of a chat: time to first token with the cache of the nine before it, and without."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import peers
from conversion import ours, run_export
from machine import settle
from measure import last_error, measure
from rounds import THREADS, Candidate, Outcome, Sample, interleave

# Long enough a chat to matter, and short enough for 2048 positions.
TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]
{%- else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"""


def bench(float32: Path, work: Path, repeats: int) -> dict[str, Outcome]:
    """Export once, linked; then each round runs one whole chat, which measures both.

    Args:
        float32: A checkpoint; gets a chat template.
        work: Where the export stands.
        repeats: Rounds.
    """
    (float32 / "chat_template.jinja").write_text(TEMPLATE)
    folder = work / "chat"
    exported = run_export(ours("", "--weights", "link", "--no-verify"), float32, folder)
    if exported.returncode:
        raise RuntimeError(f"export: {last_error(exported)}")

    def once(way: str) -> Sample:
        settle(folder)
        script = peers.WORKERS / "chat_ours.py"
        measured = measure([sys.executable, script, folder, str(THREADS), way])
        if measured.returncode:
            raise RuntimeError(last_error(measured))
        return json.loads(measured.stdout.splitlines()[-1]) | measured.conditions()

    ways = {"reuse": "ours, with prefix reuse", "anew": "ours, the whole prompt again"}
    return interleave([Candidate(name, lambda way=way: once(way)) for way, name in ways.items()], repeats)
