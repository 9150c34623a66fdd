"""A prompt as a person gives it, turned into tokens, or refused before any work."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from llama_runtime.errors import OptionError, PromptError, TokenizerError
from llama_runtime.manifest import Manifest
from llama_runtime.options import SamplingOptions
from llama_runtime.tokenizer import Tokenizer

Prompt = str | Sequence[int]


def check_prompt(
    prompt: Prompt, options: SamplingOptions, manifest: Manifest, tokenizer: Tokenizer | None
) -> list[int]:
    """Turn the prompt into tokens and refuse what cannot be generated.

    Args:
        prompt: Text, or the ids of all tokens, BOS included.
        options: How many tokens are to follow, and which ids they name.
        manifest: What the model has.
        tokenizer: None where the bundle has none.

    Raises:
        PromptError: Empty, not text, an unknown token, or too long with the tokens asked for.
        OptionError: The options name an unknown token.
        TokenizerError: Text, or stop strings, for a bundle without a tokenizer.
    """
    tokens = _prompt_tokens(prompt, options, tokenizer)
    if not tokens:
        raise PromptError("the prompt is empty, and the model has no token that opens a text")
    V = manifest.limits.vocab_size
    if unknown := [token for token in options.logit_bias if token >= V]:
        raise OptionError(f"logit_bias has token {unknown[0]}, the model knows 0 to {V - 1}")
    for token in tokens:
        if not 0 <= token < V:
            raise PromptError(f"the prompt has token {token}, the model knows 0 to {V - 1}")
    limit, wanted = manifest.limits.max_position_embeddings, options.max_new_tokens
    if len(tokens) + wanted > limit:
        room = limit - len(tokens)
        raise PromptError(
            f"{len(tokens)} tokens of prompt and {wanted} new ones are {len(tokens) + wanted}, "
            f"the model has {limit} positions",
            f"ask for at most {room} new tokens" if room > 0 else "shorten the prompt",
        )
    return tokens


def _prompt_tokens(prompt: Prompt, options: SamplingOptions, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None and (isinstance(prompt, str) or options.stop):
        hint = "give the prompt as token ids, without stop strings"
        raise TokenizerError("the bundle has no tokenizer", hint)
    if isinstance(prompt, str) and tokenizer:
        return tokenizer.encode(prompt)
    try:
        # Bytes are a sequence of integers too, but nobody means token ids by them.
        if isinstance(prompt, bytes):
            raise TypeError
        return [operator.index(token) for token in prompt]  # type: ignore[arg-type]
    except TypeError:
        shown = repr(prompt)[:60]
        raise PromptError(f"the prompt is {shown}, needs text or a sequence of token ids") from None
