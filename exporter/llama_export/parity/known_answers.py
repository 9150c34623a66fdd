"""Known answers: prompts, the tokens that follow and some of the reference's logits, for any device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llama_export.parity.evidence import Evidence
from llama_export.parity.rungs.greedy import answers, measured_error
from llama_runtime.extras import Outputs
from llama_runtime.manifest import KnownAnswer, KnownOutput, OutputProbe, Probe

_PROBE_IDS = 8
_OUTPUT_PROBES = 8


def known_answers(evidence: Evidence) -> tuple[KnownAnswer, ...]:
    """What the candidate chose, and what the reference makes of it."""
    # Another device may differ from this one as float32 sums do, on top of what this one differs already.
    limit = measured_error(evidence) + evidence.tolerances["logits"].limit * evidence.scale
    return tuple(
        KnownAnswer(
            prompt=prompt.text,
            prompt_tokens=prompt.tokens,
            tokens=found.tokens,
            near_ties=near_ties(wanted, limit),
            probes=_probes(wanted),
            tolerance=limit,
        )
        for prompt, found, wanted in (
            (prompt, found, answers(wanted, len(found.prompt), len(found.tokens)))
            for prompt, found, wanted in zip(
                evidence.prompts, evidence.continued, evidence.wanted, strict=False
            )
        )
    )


def near_ties(wanted: np.ndarray, error: float) -> tuple[int, ...]:
    """Where the reference's two best logits are closer than twice an error: [n, V] logits to indices."""
    best = np.sort(wanted, axis=1)[:, -2:]  # [n, 2]
    return tuple(np.flatnonzero(best[:, 1] - best[:, 0] < 2 * error).tolist())


def _probes(wanted: np.ndarray) -> tuple[Probe, ...]:
    """The best logits at the first, the middle and the last token: [n, V]."""
    probes = []
    for position in sorted({0, len(wanted) // 2, len(wanted) - 1}):
        ids = np.argsort(-wanted[position], kind="stable")[:_PROBE_IDS].tolist()
        probes.append(Probe(position, tuple(ids), tuple(float(wanted[position, i]) for i in ids)))
    return tuple(probes)


def known_outputs(evidence: Evidence, wanted: Sequence[Outputs], worst: float) -> tuple[KnownOutput, ...]:
    """Each prompt's text, and the reference's numbers from all over its outputs.

    Args:
        evidence: With the prompts.
        wanted: What the reference computed for each.
        worst: By how much this device differed, as a fraction of the largest.
    """
    scale = max(float(np.abs(output).max()) for row in wanted for output in row.values())
    limit = (worst + evidence.tolerances["logits"].limit) * scale
    return tuple(
        KnownOutput(prompt.text, prompt.tokens, _output_probes(outputs), limit)
        for prompt, outputs in zip(evidence.prompts, wanted, strict=True)
    )


def _output_probes(wanted: Outputs) -> tuple[OutputProbe, ...]:
    probes = []
    for name, output in wanted.items():
        places = np.unique(np.linspace(0, output.size - 1, _OUTPUT_PROBES).astype(int))
        values = output.reshape(-1)[places]
        probes.append(OutputProbe(name, tuple(places.tolist()), tuple(values.tolist())))
    return tuple(probes)
