"""Answer questions from a text: the span of it that most likely is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama_runtime.errors import OptionError, PromptError, TokenizerError
from llama_runtime.opening import Device
from llama_runtime.tasks.batch import BATCH_SIZE, TextModel
from llama_runtime.tasks.classify import apply
from llama_runtime.tasks.offsets import Encoded, encode_with_offsets, trim
from llama_runtime.tasks.opening import open_text_model

TASK = "question-answering"


@dataclass(frozen=True)
class Answer:
    """A span of the context.

    Attributes:
        text: As it stands there, without whitespace around it.
        score: Probability of its first token times that of its last.
        start: First character in the context.
        end: Behind the last.
    """

    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class _Window:
    """A piece of a context behind its question, as the model reads it."""

    pair: int
    row: list[int]
    spans: tuple[tuple[int, int], ...]  # of the context tokens that may be an answer
    first: int  # where they begin in the row


class Answerer:
    """An open bundle that answers questions from texts; threads may share it."""

    def __init__(self, model: TextModel) -> None:
        self.model = model

    def answer(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        max_answer_tokens: int = 15,
        stride_tokens: int = 128,
        batch_size: int = BATCH_SIZE,
    ) -> list[Answer]:
        """Find the best answer to each question in its context; padded to batches.

        A pair is read as the question and then the context, each with the tokens that the model wants
        around a text. A context that does not fit the model's positions is read in windows.

        Args:
            pairs: (question, context) each.
            max_answer_tokens: The longest answer.
            stride_tokens: How much neighbouring windows share, so that no answer is cut in all of them.
            batch_size: The most windows in one run of the graph.

        Raises:
            OptionError: A limit below 1.
            PromptError: A question or context is empty, or the question alone is too long.
            TokenizerError: The bundle has no tokenizer, or one that changes the text.
            SessionError: ONNX Runtime failed.
        """
        if max_answer_tokens < 1 or stride_tokens < 1:
            raise OptionError("max_answer_tokens and stride_tokens must be at least 1")
        windows = [
            window
            for index, pair in enumerate(pairs)
            for window in self._windows(index, *pair, stride_tokens)
        ]
        names = ["start_logits", "end_logits"]
        found = self.model.outputs([window.row for window in windows], names, batch_size=batch_size)
        best: dict[int, Answer] = {}
        for window, outputs in zip(windows, found, strict=True):
            begins, ends = (outputs[name] for name in names)
            answer = _best(window, begins, ends, pairs[window.pair][1], max_answer_tokens)
            if window.pair not in best or answer.score > best[window.pair].score:
                best[window.pair] = answer
        return [best[index] for index in range(len(pairs))]

    def _windows(self, index: int, question: str, context: str, stride: int) -> list[_Window]:
        asked, given = self._encode("question", question), self._encode("context", context)
        head = [*asked.tokens, *given.tokens[: given.first]]
        tail = list(given.tokens[given.end :])
        tokens, spans = given.tokens[given.first : given.end], given.spans[given.first : given.end]
        limit = self.model.manifest.limits.max_position_embeddings
        room = limit - len(head) - len(tail)
        if room < 1:
            raise PromptError(
                f"the question is {len(asked.tokens)} tokens long, the model has {limit} positions",
                "shorten the question",
            )
        step = max(1, room - stride)
        starts = range(0, max(1, len(tokens) - room + step), step)
        return [
            _Window(index, [*head, *tokens[at : at + room], *tail], spans[at : at + room], len(head))
            for at in starts
        ]

    def _encode(self, what: str, text: str) -> Encoded:
        if self.model.tokenizer is None:
            raise TokenizerError("the bundle has no tokenizer, which answers are found by")
        if not text.strip():
            raise PromptError(f"the {what} is empty, needs a text")
        return encode_with_offsets(self.model.tokenizer, text)


def load_answerer(
    path: str | Path, threads: int | None = None, *, device: Device = "cpu", engine: str | None = None
) -> Answerer:
    """Open a bundle of task ``question-answering``; arguments and errors are ``open_text_model``'s."""
    return Answerer(open_text_model(path, TASK, threads, device, engine))


def _best(
    window: _Window, start_logits: np.ndarray, end_logits: np.ndarray, context: str, longest: int
) -> Answer:
    """Choose the likeliest span of context tokens from [t] logits of the window's row."""
    own = slice(window.first, window.first + len(window.spans))
    begins, ends = apply("softmax", start_logits[own]), apply("softmax", end_logits[own])
    # An end may not stand before its start, nor more than ``longest`` tokens on.
    scores = np.tril(np.triu(np.outer(begins, ends)), longest - 1)
    first, last = divmod(int(scores.argmax()), len(ends))
    start, end = trim(context, window.spans[first][0], window.spans[last][1])
    return Answer(context[start:end], float(scores[first, last]), start, max(start, end))
