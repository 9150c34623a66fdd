"""What a bundle is asked when it is verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_export.model.config import LlamaConfig
from llama_runtime.tokenizer import Tokenizer

DEFAULT_TEXTS = (
    "Once upon a time there was",
    "The three most important things to know about the sea are",
)
_RANDOM_LENGTHS = (11, 7)
_LARGE_PARAMETERS = 200_000_000


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the text they came from where there is a tokenizer."""

    text: str | None
    tokens: tuple[int, ...]


def choose_prompts(
    config: LlamaConfig, tokenizer: Tokenizer | None, texts: Sequence[str] = DEFAULT_TEXTS
) -> list[Prompt]:
    """Encode the texts, or draw ids from a fixed seed where there is no tokenizer.

    Prompts are cut so that they fill at most half of what the model can hold.
    """
    longest = max(1, config.context_length // 2)
    if tokenizer is not None:
        encoded = [(text, tokenizer.encode(text)[:longest]) for text in texts]
        return [Prompt(text, tuple(ids)) for text, ids in encoded if ids]
    generator = np.random.default_rng(0)
    lengths = [min(length, longest) for length in _RANDOM_LENGTHS]
    return [Prompt(None, tuple(generator.integers(0, config.vocab_size, n).tolist())) for n in lengths]


def new_tokens(config: LlamaConfig, parameters: int) -> int:
    """How many tokens to generate after each prompt: 64, or 6 where each costs a noticeable time."""
    wanted = 6 if parameters > _LARGE_PARAMETERS else 64
    return max(1, min(wanted, config.context_length // 2))
