"""Tag the words of texts: a label for each, with its place in the text, and named spans of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from llama_runtime.errors import OptionError, PromptError, TokenizerError
from llama_runtime.opening import Device
from llama_runtime.tasks.batch import BATCH_SIZE, TextModel
from llama_runtime.tasks.classify import apply
from llama_runtime.tasks.offsets import Encoded, encode_with_offsets, trim
from llama_runtime.tasks.opening import open_text_model

TASK = "token-classification"
OUTSIDE = "O"
Aggregation = Literal["first", "max", "average"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)


@dataclass(frozen=True)
class Tag:
    """A word, or a span of several, and its label.

    Attributes:
        text: As it stands in the text.
        label: Of the word; of a span without its B- or I-.
        score: How sure the model is; of a span the mean over its words.
        start: First character.
        end: Behind the last.
    """

    text: str
    label: str
    score: float
    start: int
    end: int


class Tagger:
    """An open bundle that labels words; threads may share it."""

    def __init__(self, model: TextModel, labels: tuple[str, ...]) -> None:
        self.model = model
        self.labels = labels

    def tag(
        self, texts: Sequence[str], *, aggregation: Aggregation = "first", batch_size: int = BATCH_SIZE
    ) -> list[tuple[Tag, ...]]:
        """Label every word, a run of characters without whitespace; texts are padded to batches.

        Args:
            texts: Strings; places in them are what is asked for.
            aggregation: How a word gets one label from its tokens: the first one's, that of the surest,
                or the best of their mean scores.
            batch_size: The most texts in one run of the graph.

        Returns:
            For each text, its words in order.

        Raises:
            OptionError: An unknown aggregation, or ``batch_size`` below 1.
            PromptError: A text is empty or too long.
            TokenizerError: The bundle has no tokenizer, or one that changes the text.
            SessionError: ONNX Runtime failed.
        """
        if aggregation not in AGGREGATIONS:
            raise OptionError(f"aggregation is {aggregation!r}, must be one of {', '.join(AGGREGATIONS)}")
        encoded = [self._encode(text) for text in texts]
        rows = [self.model.encode(item.tokens) for item in encoded]
        found = self.model.outputs(rows, ["logits"], batch_size=batch_size)
        return [
            tuple(self._words(text, item, outputs["logits"], aggregation))
            for text, item, outputs in zip(texts, encoded, found, strict=True)
        ]

    def _encode(self, text: str) -> Encoded:
        if self.model.tokenizer is None:
            raise TokenizerError("the bundle has no tokenizer, which words are found by")
        if not isinstance(text, str):
            raise PromptError(f"the text is {text!r}, needs a string, which words are found in")
        return encode_with_offsets(self.model.tokenizer, text)

    def _words(
        self, text: str, encoded: Encoded, logits: np.ndarray, aggregation: Aggregation
    ) -> Iterator[Tag]:
        scores = apply("softmax", logits)  # [t, labels]
        for word in _group(text, encoded):
            start, end = trim(text, encoded.spans[word[0]][0], encoded.spans[word[-1]][1])
            chosen = _aggregate(scores[word], aggregation)
            best = int(chosen.argmax())
            yield Tag(text[start:end], self.labels[best], float(chosen[best]), start, end)


def load_tagger(
    path: str | Path, threads: int | None = None, *, device: Device = "cpu", engine: str | None = None
) -> Tagger:
    """Open a bundle of task ``token-classification``; arguments and errors are ``open_text_model``'s."""
    model = open_text_model(path, TASK, threads, device, engine)
    assert model.manifest.classification is not None  # the manifest was refused otherwise
    return Tagger(model, model.manifest.classification.labels)


def entities(text: str, tags: Sequence[Tag]) -> tuple[Tag, ...]:
    """Join neighbouring words of one kind to named spans, as B- and I- say; words outside are left out.

    A word goes on with the span before it unless its label is of another kind or begins with B-. Labels
    without B- or I- are kinds by themselves.
    """
    spans: list[list[Tag]] = []
    for tag in tags:
        goes_on = spans and _kind(tag.label) == _kind(spans[-1][-1].label) and not tag.label.startswith("B-")
        if goes_on:
            spans[-1].append(tag)
        else:
            spans.append([tag])
    return tuple(
        Tag(
            text[span[0].start : span[-1].end],
            _kind(span[0].label),
            sum(tag.score for tag in span) / len(span),
            span[0].start,
            span[-1].end,
        )
        for span in spans
        if _kind(span[0].label) != OUTSIDE
    )


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _group(text: str, encoded: Encoded) -> list[list[int]]:
    """Indices of each word's tokens: a token with a space in front, or behind one, opens a word."""
    words: list[list[int]] = []
    last_end = 0
    for index in range(encoded.first, encoded.end):
        start, end = encoded.spans[index]
        if trim(text, start, end)[0] >= end:
            continue  # nothing but whitespace
        begins = not words or text[start].isspace() or text[last_end - 1].isspace() or start > last_end
        if begins:
            words.append([])
        words[-1].append(index)
        last_end = end
    return words


def _aggregate(scores: np.ndarray, aggregation: Aggregation) -> np.ndarray:
    """Map [tokens, labels] of a word to [labels]."""
    if aggregation == "first":
        chosen: np.ndarray = scores[0]
    elif aggregation == "max":
        chosen = scores[scores.max(axis=1).argmax()]
    else:
        chosen = scores.mean(axis=0)
    return chosen
