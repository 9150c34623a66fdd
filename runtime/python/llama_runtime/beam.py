"""Beam search over one prompt: the same texts, token for token, as transformers' ``generate``.

N beams, V vocabulary. FORMAT.md specifies it: scores are sums of log-probabilities, candidates stand
in descending order of score, ties by lower beam, then by lower token id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_runtime.errors import OptionError
from llama_runtime.logprobs import TokenLogprobs, log_softmax, token_logprobs
from llama_runtime.options import SamplingOptions
from llama_runtime.processors import process
from llama_runtime.sampling import best_first, greedy

# At the start all beams are the prompt: this score keeps all but the first from being continued.
UNUSED = -1e9


@dataclass(frozen=True)
class Beam:
    """A text that grows or is complete.

    Attributes:
        score: Sum of its tokens' processed log-probabilities; of a complete text, over its length
            to the power of ``length_penalty``.
        tokens: What was generated.
        logprobs: One for each token, where the options ask for them.
    """

    score: float
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


class BeamSearch:
    """The search without the model: takes logits, says which beams go on.

    Attributes:
        running: The N beams that grow, best first.
        finished: At most N complete texts, best first.
    """

    def __init__(
        self, prompt_tokens: Sequence[int], options: SamplingOptions, eos_token_ids: Sequence[int]
    ) -> None:
        self._prompt_tokens = tuple(prompt_tokens)
        self._options = options
        self._eos = () if options.ignore_eos else tuple(eos_token_ids)
        self._can_improve = True
        self.running = [Beam(0.0), *(Beam(UNUSED) for _ in range(options.num_beams - 1))]
        self.finished: list[Beam] = []

    def advance(self, logits: np.ndarray) -> list[int] | None:
        """Give every beam its next token.

        Args:
            logits: [N, V] float32, what follows each of ``running``.

        Returns:
            For each of the new ``running``, which of the old it continues; None when the search has ended.

        Raises:
            SessionError: A largest logit is NaN or infinite.
            OptionError: The options leave no token to choose from.
        """
        N, length = self._options.num_beams, len(self.running[0].tokens) + 1
        parents, candidates = self._candidates(logits)
        ends = [beam.tokens[-1] in self._eos or length == self._options.max_new_tokens for beam in candidates]
        # A text that ends below the N best is dropped: it was there only to leave enough to go on with.
        self._finish([beam for beam, end in zip(candidates[:N], ends[:N], strict=True) if end], length)
        going_on = [i for i, end in enumerate(ends) if not end][:N]
        if len(going_on) < N:
            return None
        self.running = [candidates[i] for i in going_on]
        return [parents[i] for i in going_on] if self._goes_on(length) else None

    def _candidates(self, logits: np.ndarray) -> tuple[list[int], list[Beam]]:
        logprobs = log_softmax(logits)  # [N, V]
        totals = np.empty(logprobs.shape, np.float64)
        for i, beam in enumerate(self.running):
            greedy(logits[i])
            scores = logprobs[i].astype(np.float32)
            scores = process(scores, self._options, self._prompt_tokens, beam.tokens, self._eos)
            totals[i] = scores.astype(np.float64) + beam.score
        # Were every one of the N best to end, N others must be left for each end-of-sequence token.
        best = best_first(totals.ravel(), max(2, 1 + len(self._eos)) * self._options.num_beams)
        parents, tokens = np.divmod(best, logprobs.shape[1])
        if totals.flat[best[0]] == -np.inf:
            raise OptionError(
                f"no token is left after {len(self.running[0].tokens)} new ones: all are forbidden"
            )
        beams = [
            self._grown(self.running[parent], int(token), float(totals[parent, token]), logprobs[parent])
            for parent, token in zip(parents, tokens, strict=True)
        ]
        return parents.tolist(), beams

    def _grown(self, beam: Beam, token: int, score: float, logprobs: np.ndarray) -> Beam:
        told = self._options.logprobs
        new = () if told is None else (token_logprobs(logprobs, token, told),)
        return Beam(score, (*beam.tokens, token), (*beam.logprobs, *new))

    def _finish(self, ended: list[Beam], length: int) -> None:
        if not self._can_improve or (self._full and self._options.early_stopping is True):
            return
        divisor = length**self._options.length_penalty
        complete = [Beam(beam.score / divisor, beam.tokens, beam.logprobs) for beam in ended]
        # The sort is stable: of equals, the earlier text stays.
        best = sorted([*self.finished, *complete], key=lambda beam: -beam.score)
        self.finished = best[: self._options.num_beams]

    @property
    def _full(self) -> bool:
        return len(self.finished) == self._options.num_beams

    def _goes_on(self, length: int) -> bool:
        """Whether a growing text may still become better than the worst complete one."""
        if not self._full:
            return True
        options = self._options
        hopeful = options.early_stopping == "never" and options.length_penalty > 0
        best_length = options.max_new_tokens if hopeful else length
        best_possible = self.running[0].score / best_length**options.length_penalty
        self._can_improve = self._can_improve and best_possible > self.finished[-1].score
        return self._can_improve and options.early_stopping is not True
