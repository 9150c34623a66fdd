"""One text in the making: everything about it but its cache. Alone or in a batch, a row is the same."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llama_runtime.certainty import is_certain
from llama_runtime.errors import OptionError
from llama_runtime.generation import FinishReason, Generation, Piece, Timings
from llama_runtime.logprobs import TokenLogprobs, log_softmax, token_logprobs
from llama_runtime.options import SamplingOptions
from llama_runtime.processors import process
from llama_runtime.sampling import sample
from llama_runtime.stopping import StopMatcher
from llama_runtime.streaming import TextStream
from llama_runtime.tokenizer import Tokenizer

# Seeds that we choose fit into a double, so that every JSON reader repeats them exactly.
SEED_BITS = 53


class Constraint(Protocol):
    """What a grammar allows next; see ``grammar.py``."""

    def allowed(self) -> np.ndarray:
        """[V] bool."""

    def accept(self, token: int) -> bool:
        """Take the token that was chosen; True when the text is complete and nothing may follow."""


class Row:
    """Turns logits into tokens and tokens into text, until something ends it.

    Attributes:
        prompt_tokens: What the model reads first.
        options: How to choose.
        seed: Of the draws.
        tokens: Those generated so far.
    """

    def __init__(
        self,
        prompt_tokens: Sequence[int],
        options: SamplingOptions,
        *,
        eos_token_ids: Sequence[int] = (),
        tokenizer: Tokenizer | None = None,
        opening: str = "",
        opens_text: bool = False,
        constraint: Constraint | None = None,
        seed: int | None = None,
    ) -> None:
        """Begin a text.

        Args:
            prompt_tokens: What the model reads first.
            options: How to choose.
            eos_token_ids: The model's, whether or not the options ignore them.
            tokenizer: None makes no text.
            opening: Text to show in front of the first piece.
            opens_text: The first token opens a text of its own, as it does behind special tokens alone.
            constraint: What the text must conform to.
            seed: Instead of the options'.
        """
        self.prompt_tokens = tuple(prompt_tokens)
        self.options = options
        self.seed = next(s for s in (seed, options.seed, secrets.randbits(SEED_BITS)) if s is not None)
        self.tokens: list[int] = []
        self._eos = () if options.ignore_eos else tuple(eos_token_ids)
        self._stream = _text_stream(tokenizer, self.prompt_tokens, opens_text)
        self._matcher = StopMatcher(options.stop)
        self._constraint = constraint
        self._opening = opening
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None

    def take(self, logits: np.ndarray) -> Piece:
        """Choose the next token.

        Args:
            logits: [V] float32, what follows prompt and tokens.

        Raises:
            SessionError: The largest logit is NaN or infinite.
            OptionError: The options leave no token to choose from.
        """
        token, told = self._choose(logits), self.options.logprobs
        return self.push(token, None if told is None else token_logprobs(log_softmax(logits), token, told))

    def push(self, token: int, logprobs: TokenLogprobs | None = None) -> Piece:
        """Add a token that has been chosen already."""
        text = "" if self.tokens else self._opening
        self.tokens.append(token)
        complete = self._constraint is not None and self._constraint.accept(token)
        if self._stream and token not in self._eos:
            text += self._matcher.push(self._stream.push(token))
        self.finish_reason = self._why_finished(token, complete)
        if self.finish_reason and self._stream:
            text += self._matcher.push(self._stream.flush()) + self._matcher.flush()
        self._texts.append(text)
        if logprobs:
            self._logprobs.append(logprobs)
        return Piece(token, text, self.finish_reason, logprobs)

    def generation(self, timings: Timings, score: float | None = None) -> Generation:
        """What has been generated, a beam's ``score`` with it; unfinished is "cancelled"."""
        return Generation(
            text="".join(self._texts),
            tokens=tuple(self.tokens),
            prompt_tokens=self.prompt_tokens,
            finish_reason=self.finish_reason or "cancelled",
            seed=self.seed,
            timings=timings,
            logprobs=None if self.options.logprobs is None else tuple(self._logprobs),
            score=score,
        )

    def is_certain(self, logits: np.ndarray, tolerance: float) -> bool:
        """Whether ``take`` would choose the same token if every logit moved by up to ``tolerance``."""
        # The penalty multiplies what it touches, and so how far that may move.
        penalty = self.options.repetition_penalty
        tolerance *= max(penalty, 1 / penalty)
        return is_certain(self._scores(logits), self.options, self.seed, len(self.tokens), tolerance)

    def _choose(self, logits: np.ndarray) -> int:
        return sample(self._scores(logits), self.options, self.seed, len(self.tokens))

    def _scores(self, logits: np.ndarray) -> np.ndarray:
        scores = process(logits, self.options, self.prompt_tokens, self.tokens, self._eos)
        if self._constraint is not None:
            scores = np.where(self._constraint.allowed(), scores, np.float32(-np.inf))
        if scores is not logits and scores.max() == -np.inf and logits.max() != -np.inf:
            raise OptionError(
                f"no token is left after {len(self.tokens)} new ones: "
                "bias, n-grams, minimum length and grammar together forbid all"
            )
        return scores

    def _why_finished(self, token: int, complete: bool) -> FinishReason | None:
        if token in self._eos:
            return "eos"
        if self._matcher.stopped or complete:
            return "stop"
        return "length" if len(self.tokens) == self.options.max_new_tokens else None


def _text_stream(
    tokenizer: Tokenizer | None, prompt_tokens: Sequence[int], opens_text: bool
) -> TextStream | None:
    if tokenizer is None:
        return None
    opens_text = opens_text or tokenizer.vocabulary.special_ids.issuperset(prompt_tokens)
    return TextStream(tokenizer, opens_text=opens_text)
