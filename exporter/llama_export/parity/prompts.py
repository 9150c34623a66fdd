"""What a bundle is asked when it is verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_export.model.config import LlamaConfig
from llama_export.tokenizer.calibration import WINDOW_TOKENS, bos_in_front
from llama_export.tokenizer.source import SourceTokenizer
from llama_runtime.tokenizer import Tokenizer

DEFAULT_TEXTS = (
    "Once upon a time there was",
    "The three most important things to know about the sea are",
)
# What rounding costs is measured on running text; this one is ours, so that every bundle can be asked.
DEFAULT_TEXT = """\
The harbour master kept two clocks on his wall. One showed the time of the town, the other the time of the
tide, and visitors often asked which of them was right. "Both," he would say, "but only one of them will wait
for you." In the winter of the great storm the town's clock stopped, and nobody noticed until the spring,
because all the boats had gone out and come home by the other one. When the clockmaker finally climbed the
tower he found a nest of swallows between the wheels. He could have cleared it out in a minute. Instead he
came down, ordered a cup of tea, and told the mayor that the repair would take until the middle of August.
Since then the people there say that a thing is on swallow's time when it is late for a good reason. The
children learn it before they learn to count, and when a teacher asks why the homework is not done, there is
always one who points to the tower and says nothing at all.
"""
MOST_PROMPTS = 16  # of a long file, whose whole text would not fit into memory as logits
_RANDOM_LENGTHS = (11, 7)
_RANDOM_TEXT_TOKENS = 128
_RANDOM_PASSAGES = range(8, 20)
_LARGE_PARAMETERS = 200_000_000


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the text they came from where there is a tokenizer."""

    text: str | None
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """How much is asked: more of a small model, where each token costs nothing.

    Attributes:
        continued: How many prompts are continued by themselves; all are read as a batch.
        new_tokens: Greedy tokens after each of them.
        chunk_tokens: Read in one go behind those.
        text_tokens: Of the text on which the cost of rounding is measured.
        whole_context: Whether the model is also read to its last position.
        every_layer: Whether every layer's intermediate tensors are compared even if nothing is wrong.
    """

    continued: int
    new_tokens: int
    chunk_tokens: int
    text_tokens: int
    whole_context: bool
    every_layer: bool


def workload(config: LlamaConfig, parameters: int, prompts: int) -> Workload:
    """Choose how much to ask, within what the model can hold and what a person will wait for."""
    large = parameters > _LARGE_PARAMETERS
    new = max(1, min(4 if large else 64, config.context_length // 2))
    room = config.context_length - longest_prompt(config) - new
    return Workload(
        continued=1 if large else prompts,
        new_tokens=new,
        chunk_tokens=max(0, min(7, room)),
        text_tokens=min(128 if large else 256, config.context_length),
        whole_context=not large and config.context_length <= 4096,
        every_layer=not large,
    )


def longest_prompt(config: LlamaConfig) -> int:
    """Prompts are cut so that they fill at most half of what the model can hold."""
    return max(1, config.context_length // 2)


def choose_prompts(
    config: LlamaConfig, tokenizer: Tokenizer | None, texts: Sequence[str] = DEFAULT_TEXTS
) -> list[Prompt]:
    """Encode the first texts, or draw ids from a fixed seed where there is no tokenizer."""
    longest = longest_prompt(config)
    if tokenizer is not None:
        encoded = [(text, tokenizer.encode(text)[:longest]) for text in texts[:MOST_PROMPTS]]
        return [Prompt(text, tuple(ids)) for text, ids in encoded if ids]
    return [Prompt(None, random_tokens(config, min(length, longest))) for length in _RANDOM_LENGTHS]


def choose_text(
    config: LlamaConfig, tokenizer: Tokenizer | None, texts: Sequence[str] | None, limit: int
) -> tuple[int, ...]:
    """The tokens on which the cost of rounding is measured: the texts given, or our own."""
    if tokenizer is None:
        return random_tokens(config, min(_RANDOM_TEXT_TOKENS, limit))
    text = "\n".join(texts) if texts else DEFAULT_TEXT.replace("\n", " ").strip()
    return tuple(tokenizer.encode(text)[:limit])


def choose_passages(
    config: LlamaConfig, tokenizer: Tokenizer | None, texts: Sequence[str] | None
) -> list[tuple[int, ...]]:
    """Texts on which the cost of rounding a task head is measured: those given, or the lines of our own."""
    limit = longest_prompt(config)
    if tokenizer is None:
        return [random_tokens(config, min(length, limit)) for length in _RANDOM_PASSAGES]
    chosen = list(texts or DEFAULT_TEXT.splitlines())[:MOST_PROMPTS]
    encoded = [tokenizer.encode(text)[:limit] for text in chosen]
    return [tuple(ids) for ids in encoded if ids]


def random_tokens(config: LlamaConfig, count: int) -> tuple[int, ...]:
    """Tokens that are the same every time."""
    return tuple(np.random.default_rng(count).integers(0, config.vocab_size, count).tolist())


def default_windows(tokenizer: SourceTokenizer | None, config: LlamaConfig) -> list[list[int]]:
    """Our texts as windows to calibrate with; random tokens where there is no tokenizer."""
    length = min(WINDOW_TOKENS, config.context_length)
    if tokenizer is None:
        return [list(random_tokens(config, length))]
    read, bos = tokenizer.reference(), bos_in_front(tokenizer)
    ids = [bos + read.encode(text, False) for text in (*DEFAULT_TEXTS, DEFAULT_TEXT)]
    return [[token for token in window if token < config.vocab_size][:length] for window in ids]
