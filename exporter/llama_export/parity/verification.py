"""One verification: gather the evidence, climb the ladder, and where a rung is red, find what to blame."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from llama_export.checkpoint import Checkpoint
from llama_export.parity.blame import blame_layers, blame_weights
from llama_export.parity.evidence import Evidence
from llama_export.parity.head_evidence import HeadEvidence
from llama_export.parity.known_answers import known_answers, known_outputs, near_ties
from llama_export.parity.ladder import HEAD_LADDER, LADDER, E, Rung, climb
from llama_export.parity.prompts import MOST_PROMPTS
from llama_export.parity.report import Blame, LayerError, Outcome, Plots, Report
from llama_export.parity.rungs.greedy import answers, choices, measured_error
from llama_runtime.extras import hidden_state_names
from llama_runtime.manifest import KnownOutput, check_structure, read_manifest

_SCATTER_POINTS = 400
# Comparing files and running the padded batch, beside the caller.
_WORKERS = 2


def verify_bundle(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    texts: Sequence[str] | None = None,
    quick: bool = False,
    threads: int | None = None,
) -> Report:
    """Compare a bundle with the eager float32 model of its checkpoint.

    The candidate reads and continues the prompts; the reference then checks the whole sequences in one
    pass, with one layer of the weights in memory at a time.

    Args:
        folder: The bundle, staged or published.
        checkpoint: What it was exported from.
        texts: Prompts, of which the first are read; the default ones where None.
        quick: Leave out padded batches and the whole context.
        threads: For ONNX Runtime; None is every core.

    Raises:
        LlamaRuntimeError: The bundle cannot be opened.
        BundleError: The graph does not hold the checkpoint's weights.
        OptionError: The prompts hold no token.
    """
    start = time.monotonic()
    manifest = read_manifest(folder)
    check_structure(folder, manifest)
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            if checkpoint.config.generates:
                evidence = Evidence(
                    folder, manifest, checkpoint, texts=texts, quick=quick, threads=threads, pool=pool
                )
                report = _verify_text(evidence)
            else:
                head = HeadEvidence(
                    folder, manifest, checkpoint, texts=texts, quick=quick, threads=threads, pool=pool
                )
                report = _verify_head(head)
        finally:
            pool.shutdown(cancel_futures=True)
    unread = len(texts or ()) - MOST_PROMPTS
    notes = [f"of {len(texts or ())} prompts the first {MOST_PROMPTS} were read"] if unread > 0 else []
    return replace(report, seconds=time.monotonic() - start, notes=tuple(notes))


def _verify_text(evidence: Evidence) -> Report:
    """A language model: logits and the tokens that are chosen by them."""
    outcomes, red = climb(evidence, LADDER)
    layers = _layers(evidence, red)
    computed = red is None or red.quantity not in ("weights", "layer")
    found = choices(evidence) if computed else []
    ties = 0
    if computed:
        error = measured_error(evidence)
        ties = sum(
            len(near_ties(answers(wanted, len(c.prompt), len(c.tokens)), error))
            for c, wanted in zip(evidence.continued, evidence.wanted, strict=True)
        )
    return Report(
        rungs=tuple(outcomes),
        tokens_compared=sum(map(len, found)),
        near_ties=ties,
        known_answers=known_answers(evidence) if red is None else (),
        known_outputs=_known_states(evidence, outcomes) if red is None else (),
        seconds=0.0,
        blame=None if red is None else _blame(evidence, red, layers),
        plots=_plots(evidence, layers, found, computed=computed),
    )


def _known_states(evidence: Evidence, outcomes: list[Outcome]) -> tuple[KnownOutput, ...]:
    """The last hidden states, where a language model's bundle gives any."""
    names = hidden_state_names(evidence.manifest)[-1:]
    if not names:
        return ()
    worst = next(outcome.measured or 0.0 for outcome in outcomes if outcome.name == "hidden states")
    return known_outputs(evidence, [{n: row[n] for n in names} for row in evidence.wanted_extras], worst)


def _verify_head(evidence: HeadEvidence) -> Report:
    """A task head: what it gives for whole texts."""
    outcomes, red = climb(evidence, HEAD_LADDER)
    layers = _layers(evidence, red)
    computed = {rung.name for rung in HEAD_LADDER if rung.quantity == "logits"}
    worst = max(outcome.measured or 0.0 for outcome in outcomes if outcome.name in computed)
    return Report(
        rungs=tuple(outcomes),
        tokens_compared=0,
        near_ties=0,
        known_answers=(),
        known_outputs=known_outputs(evidence, evidence.wanted_outputs, worst) if red is None else (),
        seconds=0.0,
        blame=None if red is None else _blame(evidence, red, layers),
        plots=_head_plots(evidence, layers, computed=red is None or red.quantity == "logits"),
    )


def _layers(evidence: E, red: Rung[E] | None) -> list[LayerError]:
    """Every intermediate tensor of the red rung's tokens; or of a prompt's, where it is cheap."""
    if red is not None:
        return [] if red.scene is None else evidence.compare_layers(red.scene(evidence))
    if evidence.workload.every_layer and not evidence.quick:
        return evidence.compare_layers(evidence.prompt_scene)
    return []


def _blame(evidence: Evidence, red: Rung[E], layers: list[LayerError]) -> Blame | None:
    if red.quantity == "weights":
        return blame_weights(evidence.weights)
    if red.scene is None:
        return None
    return blame_layers(red.name, layers, evidence.tolerances["layer"].limit)


def _plots(evidence: Evidence, layers: list[LayerError], found: list, *, computed: bool) -> Plots:  # type: ignore[type-arg]
    tensors = tuple(t for t in evidence.weights if t.differing or t.largest)
    if not computed:
        return Plots(layers=tuple(layers), tensors=tensors)
    scale, positions, points = evidence.scale, [], []
    for c, wanted in zip(evidence.continued, evidence.wanted, strict=True):
        got = np.concatenate((c.prefill, c.decode, c.chunked))
        positions.append(tuple((np.abs(got - wanted).max(axis=1) / scale).tolist()))
        points.append(np.stack((wanted.ravel(), got.ravel()), axis=1))
    return Plots(
        layers=tuple(layers),
        positions=tuple(positions),
        tokens=tuple(found),
        logits=_sampled(points),
        tensors=tensors,
    )


def _head_plots(evidence: HeadEvidence, layers: list[LayerError], *, computed: bool) -> Plots:
    tensors = tuple(t for t in evidence.weights if t.differing or t.largest)
    if not computed:
        return Plots(layers=tuple(layers), tensors=tensors)
    points = [
        np.stack((want[name].ravel(), got[name].ravel()), axis=1)
        for got, want in zip(evidence.alone(evidence.rows), evidence.wanted_outputs, strict=True)
        for name in evidence.names
    ]
    return Plots(layers=tuple(layers), logits=_sampled(points), tensors=tensors)


def _sampled(points: list[np.ndarray]) -> tuple[tuple[float, float], ...]:
    """Pairs of a reference's and the candidate's number: a few of [N, 2] each."""
    pairs = np.concatenate(points)
    # Evenly over the sorted reference: the few large logits, which choose the token, are among them.
    order = pairs[:, 0].argsort()[np.linspace(0, len(pairs) - 1, _SCATTER_POINTS).astype(int)]
    return tuple((float(want), float(got)) for want, got in pairs[order])
