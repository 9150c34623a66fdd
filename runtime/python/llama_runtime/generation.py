"""What comes out of generating: pieces while it runs, a generation when it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llama_runtime.logprobs import TokenLogprobs

FinishReason = Literal["stop", "eos", "length", "cancelled"]


@dataclass(frozen=True)
class Piece:
    """One generated token and the text that it made safe to show, which may be empty.

    ``finish_reason`` is set on the last piece of a generation, and None before; ``logprobs`` where
    the options ask for them.
    """

    token: int
    text: str
    finish_reason: FinishReason | None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class Timings:
    """Wall-clock time of one generation."""

    prefill_ms: float
    decode_ms: float

    def decode_tokens_per_second(self, generation: Generation) -> float | None:
        """Speed after the first token, which the prefill gave; None where there was only that."""
        decoded = len(generation.tokens) - 1
        return decoded / self.decode_ms * 1000 if decoded > 0 and self.decode_ms else None


@dataclass(frozen=True)
class Generation:
    """A finished generation.

    Attributes:
        text: What continues the prompt: prompt + text is the whole; empty without a tokenizer.
        tokens: All that were generated, an end-of-sequence token included.
        prompt_tokens: What the model read, BOS included.
        finish_reason: "eos" token, "stop" string or complete grammar, "length", or "cancelled".
        seed: Repeats the draws; the one from the options, else the one that was chosen.
        timings: How long it took; in a batch and in a beam search, together with its neighbours.
        logprobs: One for each token, where the options ask for them.
        score: Of a beam: its log-probability over its length to the power of ``length_penalty``.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    finish_reason: FinishReason
    seed: int
    timings: Timings
    logprobs: tuple[TokenLogprobs, ...] | None = None
    score: float | None = None
