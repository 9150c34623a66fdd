"""The ladder of the task heads: weights, each text alone, and batches padded on either side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from llama_export.checkpoint import Checkpoint
from llama_export.errors import OptionError
from llama_export.graph import contract
from llama_export.model import HEADS, LlamaConfig
from llama_export.model.layer import RMSNorm
from llama_export.parity.measurement import largest_difference
from llama_export.parity.prompts import DEFAULT_TEXTS, Prompt, choose_prompts
from llama_export.parity.reference import Read, reference_hidden
from llama_export.parity.report import Outcome, Report
from llama_export.parity.stored_weights import stored_weights
from llama_export.parity.tolerances import TOLERANCES, UNITS, Quantity, rounding_of
from llama_export.parity.weight_values import compare_weights
from llama_runtime.manifest import KnownOutput, Manifest, OutputProbe
from llama_runtime.session import open_session
from llama_runtime.tasks.batch import run_padded
from llama_runtime.tokenizer import open_tokenizer

Outputs = dict[str, np.ndarray]

_PROBES = 8


def verify_head(
    folder: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    *,
    texts: Sequence[str] | None = None,
    threads: int | None = None,
) -> Report:
    """Compare a task head's outputs with what the eager float32 model makes of the same stored weights.

    Args:
        folder: The bundle, staged or published.
        manifest: Its manifest.
        checkpoint: What it was exported from, opened for the same task.
        texts: What is read; the default ones where None.
        threads: For ONNX Runtime; None is every core.

    Raises:
        OptionError: The texts hold no token.
    """
    start = time.monotonic()
    tokenizer = None
    if manifest.tokenizer is not None:
        tokenizer = open_tokenizer(folder, manifest.tokenizer, manifest.tokens)
    prompts = choose_prompts(checkpoint.config, tokenizer, texts or DEFAULT_TEXTS)
    if not prompts:
        raise OptionError("the prompts hold no token, needs at least one", "write longer ones")
    rows = [prompt.tokens for prompt in prompts]
    stored = stored_weights(folder, manifest)
    session = open_session(folder, manifest, threads=threads, widen_at_load=False)
    wanted = reference_outputs(checkpoint.config, lambda name: stored[name].read(), rows)
    names = list(wanted[0])
    scales = {name: max(float(np.abs(row[name]).max()) for row in wanted) for name in names}

    def error(found: Sequence[Outputs]) -> float:
        both = list(zip(found, wanted, strict=True))
        return max(
            largest_difference(((got[name], want[name]) for got, want in both), scales[name])
            for name in names
        )

    differing = compare_weights(stored, checkpoint)
    ladder: tuple[tuple[str, Quantity, Callable[[], float]], ...] = (
        ("weights", "weights", lambda: float(sum(tensor.differing for tensor in differing))),
        ("outputs", "logits", lambda: error([run_padded(session, [row], names)[0] for row in rows])),
        ("left-padded batch", "logits", lambda: error(run_padded(session, rows, names, left=True))),
        ("right-padded batch", "logits", lambda: error(run_padded(session, rows, names))),
    )
    tolerances = TOLERANCES[rounding_of(checkpoint.dtype, manifest.precision), "onnxruntime-cpu"]
    outcomes: list[Outcome] = []
    for name, quantity, measure in ladder:
        stop = any(outcome.red for outcome in outcomes)
        limit, reason = tolerances[quantity].limit, tolerances[quantity].reason
        detail = "a rung below is red" if stop else f"{len(rows)} texts"
        measured = None if stop else measure()
        outcomes.append(Outcome(name, measured, limit, UNITS[quantity], reason, detail))
    proven = not any(outcome.red for outcome in outcomes)
    worst = max(outcome.measured or 0.0 for outcome in outcomes[1:]) + tolerances["logits"].limit
    known = [_known_output(*item, scales, worst) for item in zip(prompts, wanted, strict=True)]
    return Report(
        rungs=tuple(outcomes),
        tokens_compared=sum(map(len, rows)),
        near_ties=0,
        known_answers=(),
        known_outputs=tuple(known) if proven else (),
        seconds=time.monotonic() - start,
    )


@torch.no_grad()
def reference_outputs(config: LlamaConfig, read: Read, rows: Sequence[Sequence[int]]) -> list[Outputs]:
    """Compute what the eager float32 model gives for each text by itself.

    Args:
        config: The architecture, with its head.
        read: Asked for one weight at a time.
        rows: Token ids.

    Returns:
        For each row of T tokens, output name to [T, ...] or [...].
    """
    hidden = reference_hidden(config, read, rows)
    norm = RMSNorm(config, "eager")
    norm.weight = nn.Parameter(read("model.norm.weight").float())
    with torch.device("meta"):
        head = HEADS[config.head.task](config)
    head.load_state_dict({name: read(name).float() for name in config.head_shapes()}, assign=True)
    found = []
    for tokens, states in zip(rows, hidden, strict=True):
        ids = torch.tensor(tokens)[None]
        outputs = head(norm(states)[None], ids, torch.ones_like(ids))
        named = zip(contract.outputs(config), outputs, strict=True)
        found.append({spec.name: output[0].numpy() for spec, output in named})
    return found


def _known_output(prompt: Prompt, wanted: Outputs, scales: dict[str, float], worst: float) -> KnownOutput:
    """What any device can repeat: numbers from all over each output."""
    probes = []
    for name, output in wanted.items():
        places = np.unique(np.linspace(0, output.size - 1, _PROBES).astype(int))
        values = output.reshape(-1)[places]
        probes.append(OutputProbe(name, tuple(places.tolist()), tuple(values.tolist())))
    return KnownOutput(prompt.text, prompt.tokens, tuple(probes), worst * max(scales.values()))
