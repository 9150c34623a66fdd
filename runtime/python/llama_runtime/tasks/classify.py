"""Classify texts: which label, and how sure; a reward model's score is the same with one label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from llama_runtime.errors import OptionError
from llama_runtime.manifest import Classification as Labels
from llama_runtime.opening import Device
from llama_runtime.tasks.batch import BATCH_SIZE, Text, TextModel
from llama_runtime.tasks.opening import open_text_model

TASK = "text-classification"
Function = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class Classification:
    """What a model says about one text.

    Attributes:
        label: The one with the highest score.
        score: Its score.
        scores: Label and score of each, in the model's order.
        logits: [labels] float32, before any function: a reward model's reward.
    """

    label: str
    score: float
    scores: tuple[tuple[str, float], ...]
    logits: np.ndarray


class Classifier:
    """An open bundle that classifies texts; threads may share it."""

    def __init__(self, model: TextModel, labels: Labels) -> None:
        self.model = model
        self.labels = labels

    def classify(
        self,
        texts: Sequence[Text],
        *,
        function: Function | None = None,
        truncate: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> list[Classification]:
        """Score texts, padded to batches; each as if it were alone.

        Args:
            texts: Strings, or token ids.
            function: From logits to scores; None is the model's own (``own_function``).
            truncate: Cut texts that are longer than the model has positions.
            batch_size: The most texts in one run of the graph.

        Raises:
            OptionError: An unknown function, or ``batch_size`` below 1.
            PromptError: A text is empty or too long.
            TokenizerError: Strings for a bundle without a tokenizer.
            SessionError: ONNX Runtime failed.
        """
        function = function or own_function(self.labels)
        rows = [self.model.encode(text, truncate=truncate) for text in texts]
        found = self.model.outputs(rows, ["logits"], batch_size=batch_size)
        return [self._read(outputs["logits"], function) for outputs in found]

    def _read(self, logits: np.ndarray, function: Function) -> Classification:
        scores = apply(function, logits)
        best = int(scores.argmax())
        named = tuple(zip(self.labels.labels, scores.tolist(), strict=True))
        return Classification(*named[best], named, logits)


def load_classifier(
    path: str | Path, threads: int | None = None, *, device: Device = "cpu", engine: str | None = None
) -> Classifier:
    """Open a bundle of task ``text-classification``; arguments and errors are ``open_text_model``'s."""
    model = open_text_model(path, TASK, threads, device, engine)
    assert model.manifest.classification is not None  # the manifest was refused otherwise
    return Classifier(model, model.manifest.classification)


def own_function(labels: Labels) -> Function:
    """What turns a model's logits into scores, as in transformers' pipeline.

    Regression is read as it is; several independent labels, or a single one, through a sigmoid; labels of
    which one is true through a softmax.
    """
    if labels.problem_type == "regression":
        return "none"
    if labels.problem_type == "multi_label_classification" or len(labels.labels) == 1:
        return "sigmoid"
    return "softmax"


def apply(function: Function, logits: np.ndarray) -> np.ndarray:
    """Turn [..., labels] logits into scores in float64.

    Raises:
        OptionError: There is no such function.
    """
    wide = logits.astype(np.float64)
    match function:
        case "none":
            return wide
        case "sigmoid":
            # By halves, since exp of a large number overflows.
            small: np.ndarray = np.exp(-np.abs(wide))
            return np.where(wide >= 0, 1.0, small) / (1.0 + small)
        case "softmax":
            powers: np.ndarray = np.exp(wide - wide.max(axis=-1, keepdims=True))
            shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
            return shares
    raise OptionError(f"function is {function!r}, must be one of {', '.join(get_args(Function))}")
