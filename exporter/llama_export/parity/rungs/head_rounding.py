"""What rounding costs a task head: the bundle against the unrounded checkpoint, text by text."""

from __future__ import annotations

import numpy as np

from llama_export.model import HeadConfig
from llama_export.parity.head_evidence import HeadEvidence
from llama_export.parity.measurement import Measurement, embedding_angles, largest_difference, log_softmax
from llama_runtime.extras import Outputs


def measure_outputs(evidence: HeadEvidence) -> Measurement:
    """The largest difference of any output."""
    got, want = evidence.passage_outputs
    errors = [
        largest_difference(
            ((g[name], w[name]) for g, w in zip(got, want, strict=True)),
            max(float(np.abs(row[name]).max()) for row in want),
        )
        for name in evidence.names
    ]
    return Measurement(max(errors), f"{len(got)} texts")


def measure_kl(evidence: HeadEvidence) -> Measurement:
    """The mean divergence of the distributions over labels, or over the places of an answer."""
    divergences = [
        (np.exp(want) * (want - got)).sum(axis=-1)
        for got, want in ((log_softmax(g), log_softmax(w)) for g, w in _pairs(evidence))
    ]
    every = np.concatenate(divergences)
    return Measurement(float(every.mean()), f"{len(every)} distributions over {_over(evidence)}")


def measure_top1(evidence: HeadEvidence) -> Measurement:
    """How often the likeliest label, or place, is another."""
    same = np.concatenate([g.argmax(axis=-1) == w.argmax(axis=-1) for g, w in _pairs(evidence)])
    return Measurement(float(1 - same.mean()), f"{int(same.sum())} of {len(same)} {_over(evidence)} the same")


def measure_cosine(evidence: HeadEvidence) -> Measurement:
    """How far apart the embeddings of a text are: 1 less their cosine, the worst of mean and last token."""
    name = "last_hidden_state"
    both = zip(*evidence.passage_outputs, strict=True)
    angles = [angle for got, want in both for angle in embedding_angles(got[name], want[name])]
    return Measurement(float(np.max(angles)), f"{len(angles)} embeddings of {len(evidence.passages)} texts")


def no_distribution(evidence: HeadEvidence) -> str | None:
    """Why there is nothing to compare as probabilities; "" where there is no head at all."""
    head = evidence.config.head
    if head.task == "feature-extraction":
        return ""
    return "a score is no probability" if head.problem_type == "regression" else None


def no_embedding(evidence: HeadEvidence) -> str | None:
    """Nothing to say of a head that gives no embeddings."""
    return None if evidence.config.head.task == "feature-extraction" else ""


def _pairs(evidence: HeadEvidence) -> list[tuple[np.ndarray, np.ndarray]]:
    head = evidence.config.head
    return [
        pair
        for got, want in zip(*evidence.passage_outputs, strict=True)
        for pair in zip(choices(head, got), choices(head, want), strict=True)
    ]


def choices(head: HeadConfig, outputs: Outputs) -> list[np.ndarray]:
    """A text's outputs as logits [N, choices] of distributions that each sum to 1.

    Args:
        head: What the outputs mean.
        outputs: Of one text of T tokens.

    Returns:
        One distribution over the labels, or one for each token; yes or no for each label that is true or
        false by itself; over the tokens, for the start and the end of an answer.
    """
    if head.task == "question-answering":
        return [outputs["start_logits"][None], outputs["end_logits"][None]]
    logits = np.atleast_2d(outputs["logits"])
    if head.task == "text-classification" and _independent(head):
        return [np.stack((logits[0], np.zeros_like(logits[0])), axis=1)]  # sigmoid, as a softmax of two
    return [logits]


def _independent(head: HeadConfig) -> bool:
    return head.problem_type == "multi_label_classification" or len(head.labels) == 1


def _over(evidence: HeadEvidence) -> str:
    return "places" if evidence.config.head.task == "question-answering" else "labels"
