"""What is done to a row's scores before a token is chosen, in the order that FORMAT.md specifies.

logit_bias -> repetition_penalty -> presence and frequency penalty -> no_repeat_ngram_size ->
min_new_tokens. All in float32. A grammar's mask comes after them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llama_runtime.options import SamplingOptions


def process(
    scores: np.ndarray,
    options: SamplingOptions,
    prompt_tokens: Sequence[int],
    new_tokens: Sequence[int],
    eos_token_ids: Sequence[int],
) -> np.ndarray:
    """Apply every processor that the options ask for.

    Args:
        scores: [V] float32: logits, or in a beam search log-probabilities. Is not changed.
        options: Which processors, and how strong.
        prompt_tokens: What the model read.
        new_tokens: What was generated since.
        eos_token_ids: The tokens that end a text; empty where they are ignored.

    Returns:
        [V] float32; ``scores`` itself where there is nothing to do.
    """
    if not options.changes_logits:
        return scores
    scores = scores.copy()
    if options.logit_bias:
        scores[list(options.logit_bias)] += np.array([*options.logit_bias.values()], np.float32)
    if options.repetition_penalty != 1:
        penalize_repetition(scores, [*prompt_tokens, *new_tokens], options.repetition_penalty)
    if (options.presence_penalty or options.frequency_penalty) and new_tokens:
        tokens, counts = np.unique(new_tokens, return_counts=True)
        scores[tokens] -= np.float32(options.presence_penalty)
        scores[tokens] -= np.float32(options.frequency_penalty) * counts.astype(np.float32)
    if options.no_repeat_ngram_size:
        scores[repeating([*prompt_tokens, *new_tokens], options.no_repeat_ngram_size)] = -np.inf
    if len(new_tokens) < options.min_new_tokens:
        scores[list(eos_token_ids)] = -np.inf
    return scores


def penalize_repetition(scores: np.ndarray, tokens: Sequence[int], penalty: float) -> None:
    """Make every token that is in ``tokens`` less likely, once however often it is there.

    Args:
        scores: [V] float32, changed in place: positive ones divided, negative ones multiplied.
        tokens: Prompt and text.
        penalty: Above 1 less likely, below 1 more.
    """
    seen = np.unique(tokens)
    before = scores[seen]
    scores[seen] = np.where(before < 0, before * np.float32(penalty), before / np.float32(penalty))


def repeating(tokens: Sequence[int], size: int) -> np.ndarray:
    """Tokens that would complete an n-gram which is already there.

    Args:
        tokens: Prompt and text.
        size: n.

    Returns:
        [N] int64; may hold a token more than once.
    """
    history = np.asarray(tokens, np.int64)
    if history.size < size:
        return np.empty(0, np.int64)
    ngrams = np.lib.stride_tricks.sliding_window_view(history, size)  # [T - n + 1, n]
    opening = history[history.size - size + 1 :]  # the last n - 1
    banned: np.ndarray = ngrams[(ngrams[:, :-1] == opening).all(axis=1), -1]
    return banned
