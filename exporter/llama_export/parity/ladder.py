"""The ladder as data, lowest rung first, and how it is climbed.

Another rung is another entry: what it is called, which entry of the table of tolerances it is held to, the
function that measures it and, where the graph alone can show it, what to feed to find the layer to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama_export.parity.evidence import Evidence
from llama_export.parity.measurement import Measurement
from llama_export.parity.report import Outcome
from llama_export.parity.rungs import (
    extras,
    first_layer,
    greedy,
    logits,
    rounding,
    soft_prompt,
    tokenizer,
    weights,
)
from llama_export.parity.scene import Scene
from llama_export.parity.tolerances import UNITS, Quantity

LEFT_OUT = "left out by --quick"


def _always(evidence: Evidence) -> None:
    return None


def _in_full(evidence: Evidence) -> str | None:
    return LEFT_OUT if evidence.quick else None


def _whole_context(evidence: Evidence) -> str | None:
    if evidence.quick or evidence.context:
        return _in_full(evidence)
    return "only for small models with a short context; far positions covers the angles"


def _by_position_alone(evidence: Evidence) -> str | None:
    depends = evidence.config.rope.rope_type in ("dynamic", "longrope")
    return "angles depend on the length of the text; whole context covers them" if depends else None


def _rounded(evidence: Evidence) -> str | None:
    return "the bundle stores the checkpoint's own values" if evidence.rounding == "exact" else None


def _prompt_scene(evidence: Evidence) -> Scene:
    return evidence.prompt_scene


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        name: As reports show it.
        quantity: What it measures, and which tolerance it is held to.
        measure: Takes the number.
        left_out: Why it is not measured for this bundle; None where it is, "" where the bundle has nothing
            of the kind, which no report needs to mention.
        scene: What to feed to the graph to see the difference layer by layer.
    """

    name: str
    quantity: Quantity
    measure: Callable[[Evidence], Measurement]
    left_out: Callable[[Evidence], str | None] = _always
    scene: Callable[[Evidence], Scene] | None = None


LADDER: tuple[Rung, ...] = (
    Rung("weights", "weights", weights.measure),
    Rung("tokenizer", "texts", tokenizer.measure, tokenizer.left_out),
    Rung("attention", "layer", first_layer.measure_attention, scene=_prompt_scene),
    Rung("one layer", "layer", first_layer.measure_layer, scene=_prompt_scene),
    Rung("learned prompt", "layer", soft_prompt.measure, soft_prompt.left_out),
    Rung("prefill", "logits", logits.measure_prefill, scene=_prompt_scene),
    Rung("decode", "logits", logits.measure_decode, scene=lambda e: e.continued_scene),
    Rung("chunked prefill", "logits", logits.measure_chunk, scene=lambda e: e.continued_scene),
    Rung("left-padded batch", "logits", logits.measure_left, _in_full, lambda e: e.batch_scene(True)),
    Rung("right-padded batch", "logits", logits.measure_right, _in_full, lambda e: e.batch_scene(False)),
    Rung("far positions", "layer", first_layer.measure_far, _by_position_alone, scene=first_layer.far_scene),
    Rung("whole context", "logits", logits.measure_context, _whole_context),
    Rung("hidden states", "layer", extras.measure_hidden_states, extras.no_hidden_states, _prompt_scene),
    Rung("attentions", "layer", extras.measure_attentions, extras.no_attentions, _prompt_scene),
    Rung("greedy tokens", "tokens", greedy.measure),
    Rung("rounded logits", "rounding", rounding.measure_logits, _rounded),
    Rung("KL divergence", "kl", rounding.measure_kl, _rounded),
    Rung("top-1 agreement", "top1", rounding.measure_top1, _rounded),
    Rung("perplexity", "perplexity", rounding.measure_perplexity, _rounded),
)


def climb(evidence: Evidence, ladder: Sequence[Rung] = LADDER) -> tuple[list[Outcome], Rung | None]:
    """Measure rung after rung until one is red.

    Returns:
        An outcome for each rung, those above the red one not measured; and the red one.
    """
    outcomes: list[Outcome] = []
    red: Rung | None = None
    for rung in ladder:
        left_out = rung.left_out(evidence)
        if left_out == "":
            continue
        if left_out is not None or red is not None:
            detail = left_out or f"{red.name if red else ''} is red"
            outcomes.append(_outcome(evidence, rung, None, detail, needed=left_out is None))
            continue
        found = rung.measure(evidence)
        outcomes.append(_outcome(evidence, rung, found.value, found.detail))
        if outcomes[-1].red:
            red = rung
    return outcomes, red


def _outcome(
    evidence: Evidence, rung: Rung, measured: float | None, detail: str, *, needed: bool = True
) -> Outcome:
    # A rung that does not apply may have no entry in this bundle's column of the table.
    tolerance = evidence.tolerances.get(rung.quantity)
    limit, reason = (tolerance.limit, tolerance.reason) if tolerance else (None, None)
    return Outcome(rung.name, measured, limit, UNITS[rung.quantity], reason, detail, needed)
