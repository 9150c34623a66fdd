"""The ladder as data, lowest rung first, and how it is climbed.

Another rung is another entry: what it is called, which entry of the table of tolerances it is held to, the
function that measures it and, where the graph alone can show it, what to feed to find the layer to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from llama_export.parity.evidence import Evidence
from llama_export.parity.head_evidence import HeadEvidence
from llama_export.parity.measurement import Measurement
from llama_export.parity.report import Outcome
from llama_export.parity.rungs import (
    extras,
    first_layer,
    greedy,
    head_rounding,
    heads,
    logits,
    own_kernels,
    rounding,
    soft_prompt,
    tokenizer,
    weights,
)
from llama_export.parity.scene import Scene
from llama_export.parity.tolerances import UNITS, Quantity

LEFT_OUT = "left out by --quick"


E = TypeVar("E", bound=Evidence)


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
    if depends:
        return "angles depend on the length of the text; whole context covers them"
    return _no_padding_in_front(evidence)


def _rounded(evidence: Evidence) -> str | None:
    return "the bundle stores the checkpoint's own values" if evidence.rounding == "exact" else None


def _no_padding_in_front(evidence: Evidence) -> str | None:
    in_half = evidence.manifest.kv_cache.dtype == "float16"
    return "a float16 graph takes no padding in front, as attention on GPUs has none" if in_half else None


def _left_padded(evidence: Evidence) -> str | None:
    return _in_full(evidence) or _no_padding_in_front(evidence)


def _whole_text(evidence: HeadEvidence) -> str | None:
    if evidence.quick or evidence.context:
        return _in_full(evidence)
    return "only for small models with a short context"


def _rounded_choices(evidence: HeadEvidence) -> str | None:
    unfit = head_rounding.no_distribution(evidence)
    return _rounded(evidence) if unfit is None else unfit


def _rounded_embeddings(evidence: HeadEvidence) -> str | None:
    unfit = head_rounding.no_embedding(evidence)
    return _rounded(evidence) if unfit is None else unfit


def _rounded_states(evidence: Evidence) -> str | None:
    unfit = extras.no_hidden_states(evidence)
    return _rounded(evidence) if unfit is None else unfit


def _prompt_scene(evidence: Evidence) -> Scene:
    return evidence.prompt_scene


@dataclass(frozen=True)
class Rung(Generic[E]):
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
    measure: Callable[[E], Measurement]
    left_out: Callable[[E], str | None] = _always
    scene: Callable[[E], Scene] | None = None


LADDER: tuple[Rung[Evidence], ...] = (
    Rung("weights", "weights", weights.measure),
    Rung("tokenizer", "texts", tokenizer.measure, tokenizer.left_out),
    Rung("attention", "layer", first_layer.measure_attention, scene=_prompt_scene),
    Rung("one layer", "layer", first_layer.measure_layer, scene=_prompt_scene),
    Rung("learned prompt", "layer", soft_prompt.measure, soft_prompt.left_out),
    Rung("prefill", "logits", logits.measure_prefill, scene=_prompt_scene),
    Rung("decode", "logits", logits.measure_decode, scene=lambda e: e.continued_scene),
    Rung("chunked prefill", "logits", logits.measure_chunk, scene=lambda e: e.continued_scene),
    Rung(
        "left-padded batch",
        "logits",
        logits.measure_left,
        _left_padded,
        lambda e: e.batch_scene(True),
    ),
    Rung("right-padded batch", "logits", logits.measure_right, _in_full, lambda e: e.batch_scene(False)),
    Rung("far positions", "layer", first_layer.measure_far, _by_position_alone, scene=first_layer.far_scene),
    Rung("whole context", "logits", logits.measure_context, _whole_context),
    Rung("hidden states", "layer", extras.measure_hidden_states, extras.no_hidden_states, _prompt_scene),
    Rung("attentions", "layer", extras.measure_attentions, extras.no_attentions, _prompt_scene),
    Rung("own kernels", "logits", own_kernels.measure_logits, own_kernels.left_out),
    Rung("greedy tokens", "tokens", greedy.measure),
    Rung("rounded logits", "rounding", rounding.measure_logits, _rounded),
    Rung("KL divergence", "kl", rounding.measure_kl, _rounded),
    Rung("top-1 agreement", "top1", rounding.measure_top1, _rounded),
    Rung("perplexity", "perplexity", rounding.measure_perplexity, _rounded),
    Rung("cosine", "cosine", extras.measure_cosine, _rounded_states),
)


HEAD_LADDER: tuple[Rung[HeadEvidence], ...] = (
    Rung("weights", "weights", weights.measure),
    Rung("tokenizer", "texts", tokenizer.measure, tokenizer.left_out),
    Rung("attention", "layer", first_layer.measure_attention, scene=_prompt_scene),
    Rung("one layer", "layer", first_layer.measure_layer, scene=_prompt_scene),
    Rung("outputs", "logits", heads.measure_outputs, scene=_prompt_scene),
    Rung("left-padded batch", "logits", heads.measure_left, _in_full, lambda e: e.batch_scene(True)),
    Rung("right-padded batch", "logits", heads.measure_right, _in_full, lambda e: e.batch_scene(False)),
    Rung("whole context", "logits", heads.measure_context, _whole_text),
    Rung("own kernels", "logits", own_kernels.measure_outputs, own_kernels.left_out),
    Rung("rounded outputs", "rounding", head_rounding.measure_outputs, _rounded),
    Rung("cosine", "cosine", head_rounding.measure_cosine, _rounded_embeddings),
    Rung("KL divergence", "kl", head_rounding.measure_kl, _rounded_choices),
    Rung("top-1 agreement", "labels", head_rounding.measure_top1, _rounded_choices),
)


def climb(evidence: E, ladder: Sequence[Rung[E]]) -> tuple[list[Outcome], Rung[E] | None]:
    """Measure rung after rung until one is red.

    Returns:
        An outcome for each rung, those above the red one not measured; and the red one.
    """
    outcomes: list[Outcome] = []
    red: Rung[E] | None = None
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
    evidence: E, rung: Rung[E], measured: float | None, detail: str, *, needed: bool = True
) -> Outcome:
    # A rung that does not apply may have no entry in this bundle's column of the table.
    tolerance = evidence.tolerances.get(rung.quantity)
    limit, reason = (tolerance.limit, tolerance.reason) if tolerance else (None, None)
    return Outcome(rung.name, measured, limit, UNITS[rung.quantity], reason, detail, needed)
