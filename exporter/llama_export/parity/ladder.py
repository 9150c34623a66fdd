"""Climb the ladder: weights, prefill, decode, chunks, padded batches, greedy tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from llama_export.checkpoint import Checkpoint
from llama_export.parity.candidate import Continuation, continue_greedily, padded_batch, prefill_in_chunks
from llama_export.parity.prompts import Prompt, choose_prompts, new_tokens
from llama_export.parity.reference import reference_logits
from llama_export.parity.report import Report, Rung
from llama_export.parity.tolerances import EXACT, Tolerance, tolerance_for
from llama_export.parity.weight_values import compare_weights
from llama_export.progress import byte_progress
from llama_runtime.manifest import KnownAnswer, Probe, check_structure, read_manifest
from llama_runtime.session import Session, open_session
from llama_runtime.tokenizer import open_tokenizer

_PROBE_IDS = 8


def verify_bundle(
    folder: Path, checkpoint: Checkpoint, *, texts: Sequence[str] | None = None, threads: int | None = None
) -> Report:
    """Compare a bundle with the eager float32 model of its checkpoint.

    The candidate reads and continues the prompts; the reference then checks the whole sequences in one
    pass, with one layer of the checkpoint in memory at a time.

    Args:
        folder: The bundle, staged or published.
        checkpoint: What it was exported from.
        texts: Prompts; the default ones where None.
        threads: For ONNX Runtime; None is every core.

    Raises:
        LlamaRuntimeError: The bundle cannot be opened.
        BundleError: The graph does not hold the checkpoint's weights.
    """
    start = time.monotonic()
    manifest = read_manifest(folder)
    check_structure(folder, manifest)
    tolerance = tolerance_for(checkpoint.dtype, manifest.precision)

    weights = compare_weights(folder, manifest, checkpoint)
    if not weights.passed:
        return Report((weights, *_not_measured(tolerance)), 0, 0, (), time.monotonic() - start)

    tokenizer = None
    if manifest.tokenizer is not None:
        tokenizer = open_tokenizer(folder, manifest.tokenizer, manifest.tokens)
    prompts = choose_prompts(checkpoint.config, tokenizer, *([texts] if texts else []))
    session = open_session(folder, manifest, threads=threads, widen_at_load=False)
    values = sum(tensor.nbytes // tensor.dtype.itemsize for tensor in checkpoint.tensors.values())
    n = new_tokens(checkpoint.config, values)
    found = [continue_greedily(session, prompt.tokens, n) for prompt in prompts]

    source_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    with byte_progress("reference", source_bytes) as advance:
        sequences = [[*p.tokens, *c.tokens[:-1]] for p, c in zip(prompts, found, strict=True)]
        lengths = [len(prompt.tokens) for prompt in prompts]
        reference = reference_logits(checkpoint, sequences, advance, prompts=lengths)
        wanted = [logits.numpy() for logits in reference]

    return _climb(session, weights, tolerance, prompts, found, wanted, start)


def _climb(
    session: Session,
    weights: Rung,
    tolerance: Tolerance,
    prompts: Sequence[Prompt],
    found: Sequence[Continuation],
    wanted: Sequence[np.ndarray],
    start: float,
) -> Report:
    """Measure rung after rung; ``wanted`` is [T + n - 1, V] for each prompt of T tokens."""
    scale = max(float(np.abs(logits).max()) for logits in wanted)
    lengths = [len(prompt.tokens) for prompt in prompts]

    def error(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        # nan_to_num would hide what np.max must show: a NaN is an infinite difference.
        worst = [np.abs(got - want).max(initial=0.0) for got, want in pairs]
        largest = float(np.max(worst)) / scale
        return largest if np.isfinite(largest) else float("inf")

    def chunked() -> list[tuple[np.ndarray, np.ndarray]]:
        # Two chunks: the second has a past and, where the prompt is long enough, several tokens.
        got = [prefill_in_chunks(session, prompt.tokens, (len(prompt.tokens) + 1) // 2) for prompt in prompts]
        return [(g, w[:T]) for g, w, T in zip(got, wanted, lengths, strict=True)]

    def padded(left: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        if len(found[0].tokens) < 2:
            return []
        following = [continuation.tokens[0] for continuation in found]
        got = padded_batch(session, [prompt.tokens for prompt in prompts], following, left=left)
        return [(g, w[: T + 1]) for g, w, T in zip(got, wanted, lengths, strict=True)]

    measures: dict[str, Callable[[], list[tuple[np.ndarray, np.ndarray]]]] = {
        "prefill": lambda: [(c.prefill, w[:T]) for c, w, T in zip(found, wanted, lengths, strict=True)],
        "decode": lambda: [(c.decode, w[T:]) for c, w, T in zip(found, wanted, lengths, strict=True)],
        "chunked prefill": chunked,
        "left-padded batch": lambda: padded(True),
        "right-padded batch": lambda: padded(False),
    }
    rungs = [weights]
    for name, measure in measures.items():
        rungs.append(Rung(name, error(measure()), tolerance.limit, _LOGITS_DETAIL))
        if not rungs[-1].passed:
            break
    measured = max(rung.measured or 0.0 for rung in rungs[1:]) * scale
    answers = [w[T - 1 :] for w, T in zip(wanted, lengths, strict=True)]  # [n, V] each
    if all(rung.passed for rung in rungs):
        rungs.append(_greedy(found, answers, measured))
    # Another device may differ from this one as float32 sums do, on top of what this one differs already.
    allowed = measured + EXACT.limit * scale
    known = tuple(_known_answer(*item, allowed) for item in zip(prompts, found, answers, strict=True))
    count = sum(len(continuation.tokens) for continuation in found)
    near_ties = sum(len(_near_ties(logits, measured)) for logits in answers)
    missing = _not_measured(tolerance)[len(rungs) - 1 :]
    return Report((*rungs, *missing), count, near_ties, known, time.monotonic() - start)


_LOGITS_DETAIL = "largest logit difference, as a fraction of the largest reference logit"
_RUNG_NAMES = ("prefill", "decode", "chunked prefill", "left-padded batch", "right-padded batch")


def _not_measured(tolerance: Tolerance) -> list[Rung]:
    rungs = [Rung(name, None, tolerance.limit, _LOGITS_DETAIL) for name in _RUNG_NAMES]
    return [*rungs, Rung("greedy tokens", None, 0, "tokens that the reference would not have chosen")]


def _greedy(found: Sequence[Continuation], wanted: Sequence[np.ndarray], error: float) -> Rung:
    """Count tokens that are not the reference's, unless it prefers its own by less than twice the error."""
    wrong = ties = count = 0
    for continuation, logits in zip(found, wanted, strict=True):
        for token, row in zip(continuation.tokens, logits, strict=True):
            count += 1
            if token != row.argmax():
                tie = row.max() - row[token] < 2 * error
                ties += tie
                wrong += not tie
    detail = (
        f"tokens that the reference would not have chosen, of {count}; near ties decided otherwise: {ties}"
    )
    return Rung("greedy tokens", wrong, 0, detail)


def _near_ties(wanted: np.ndarray, error: float) -> tuple[int, ...]:
    """Where the reference's two best logits are closer than twice an error: [n, V] logits to indices."""
    best = np.sort(wanted, axis=1)[:, -2:]  # [n, 2]
    return tuple(np.flatnonzero(best[:, 1] - best[:, 0] < 2 * error).tolist())


def _known_answer(prompt: Prompt, found: Continuation, wanted: np.ndarray, limit: float) -> KnownAnswer:
    """What any device can repeat: the tokens, and the reference's best logits at some of them."""
    n = len(found.tokens)
    probes = []
    for position in sorted({0, n // 2, n - 1}):
        ids = torch.from_numpy(wanted[position]).topk(min(_PROBE_IDS, wanted.shape[1])).indices.tolist()
        probes.append(Probe(position, tuple(ids), tuple(float(wanted[position, i]) for i in ids)))
    return KnownAnswer(
        prompt=prompt.text,
        prompt_tokens=prompt.tokens,
        tokens=found.tokens,
        near_ties=_near_ties(wanted, limit),
        probes=tuple(probes),
        tolerance=limit,
    )
