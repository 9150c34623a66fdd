"""A bundle as a text generator: prefill the prompt, then sample and decode until something ends it."""

from __future__ import annotations

import operator
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llama_runtime.errors import ManifestError, OptionError, PromptError, TokenizerError
from llama_runtime.manifest import Manifest, check_structure, read_manifest
from llama_runtime.sampling import SamplingOptions, sample
from llama_runtime.session import Session, open_session
from llama_runtime.stopping import StopMatcher
from llama_runtime.streaming import TextStream
from llama_runtime.tokenizer import Tokenizer, open_tokenizer

FinishReason = Literal["stop", "eos", "length"]
Prompt = str | Sequence[int]
TASK = "text-generation"
# Seeds that we choose fit into a double, so that every JSON reader repeats them exactly.
SEED_BITS = 53


@dataclass(frozen=True)
class Piece:
    """One generated token and the text that it made safe to show, which may be empty.

    ``finish_reason`` is set on the last piece of a generation, and None before.
    """

    token: int
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Timings:
    """Wall-clock time of one generation."""

    prefill_ms: float
    decode_ms: float

    def decode_tokens_per_second(self, generation: Generation) -> float | None:
        """Speed after the first token, which the prefill gave; None where there was only that."""
        decoded = len(generation.tokens) - 1
        return decoded / self.decode_ms * 1000 if decoded and self.decode_ms else None


@dataclass(frozen=True)
class Generation:
    """A finished generation.

    Attributes:
        text: What continues the prompt: prompt + text is the whole; empty without a tokenizer.
        tokens: All that were generated, an end-of-sequence token included.
        prompt_tokens: What the model read, BOS included.
        finish_reason: "eos" token, "stop" string, or "length".
        seed: Repeats the draws; the one from the options, else the one that was chosen.
        timings: How long it took.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    finish_reason: FinishReason
    seed: int
    timings: Timings


class Generator:
    """An open bundle; threads may share it."""

    def __init__(self, session: Session, tokenizer: Tokenizer | None) -> None:
        self.session = session
        self.tokenizer = tokenizer

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.session.manifest

    def stream(self, prompt: Prompt, options: SamplingOptions | None = None) -> Iterator[Piece]:
        """Generate piece by piece; the prompt is checked now, the work is done as pieces are taken.

        Args:
            prompt: Text, or the ids of all tokens, BOS included.
            options: None is greedy, 128 tokens.

        Raises:
            PromptError: Empty, not text, an unknown token, or too long with the tokens asked for.
            TokenizerError: Text for a bundle without a tokenizer.
        """
        options = options or SamplingOptions()
        prompt_tokens = self.check_prompt(prompt, options)
        return self._pieces(prompt_tokens, options, _choose_seed(options))

    def generate(self, prompt: Prompt, options: SamplingOptions | None = None) -> Generation:
        """Generate until the end; the arguments and errors are those of ``stream``."""
        options = options or SamplingOptions()
        prompt_tokens, seed = self.check_prompt(prompt, options), _choose_seed(options)
        pieces, first_s = [], 0.0
        start_s = time.perf_counter()
        for piece in self._pieces(prompt_tokens, options, seed):
            pieces.append(piece)
            first_s = first_s or time.perf_counter()
        end_s = time.perf_counter()
        return Generation(
            text="".join(piece.text for piece in pieces),
            tokens=tuple(piece.token for piece in pieces),
            prompt_tokens=tuple(prompt_tokens),
            finish_reason=pieces[-1].finish_reason or "length",
            seed=seed,
            timings=Timings((first_s - start_s) * 1000, (end_s - first_s) * 1000),
        )

    def check_prompt(self, prompt: Prompt, options: SamplingOptions) -> list[int]:
        """Turn the prompt into tokens and refuse what cannot be generated, before any work.

        Raises:
            PromptError: Empty, not text, an unknown token, or too long with the tokens asked for.
            TokenizerError: Text, or stop strings, for a bundle without a tokenizer.
        """
        tokens = self._prompt_tokens(prompt, options)
        if not tokens:
            raise PromptError("the prompt is empty, and the model has no token that opens a text")
        V = self.manifest.limits.vocab_size
        for token in tokens:
            if not 0 <= token < V:
                raise PromptError(f"the prompt has token {token}, the model knows 0 to {V - 1}")
        limit, wanted = self.manifest.limits.max_position_embeddings, options.max_new_tokens
        if len(tokens) + wanted > limit:
            room = limit - len(tokens)
            raise PromptError(
                f"{len(tokens)} tokens of prompt and {wanted} new ones are {len(tokens) + wanted}, "
                f"the model has {limit} positions",
                f"ask for at most {room} new tokens" if room > 0 else "shorten the prompt",
            )
        return tokens

    def _prompt_tokens(self, prompt: Prompt, options: SamplingOptions) -> list[int]:
        if self.tokenizer is None and (isinstance(prompt, str) or options.stop):
            hint = "give the prompt as token ids, without stop strings"
            raise TokenizerError("the bundle has no tokenizer", hint)
        if isinstance(prompt, str) and self.tokenizer:
            return self.tokenizer.encode(prompt)
        try:
            # Bytes are a sequence of integers too, but nobody means token ids by them.
            if isinstance(prompt, bytes):
                raise TypeError
            return [operator.index(token) for token in prompt]  # type: ignore[arg-type]
        except TypeError:
            shown = repr(prompt)[:60]
            raise PromptError(f"the prompt is {shown}, needs text or a sequence of token ids") from None

    def _text_stream(self, prompt_tokens: list[int]) -> TextStream | None:
        if self.tokenizer is None:
            return None
        special_ids = self.tokenizer.vocabulary.special_ids
        return TextStream(self.tokenizer, opens_text=special_ids.issuperset(prompt_tokens))

    def _pieces(self, prompt_tokens: list[int], options: SamplingOptions, seed: int) -> Iterator[Piece]:
        cache = self.session.new_cache(capacity=len(prompt_tokens) + options.max_new_tokens)
        stream = self._text_stream(prompt_tokens)
        matcher = StopMatcher(options.stop)
        eos = () if options.ignore_eos else self.manifest.tokens.eos_token_ids
        logits = self.session.prefill(np.array([prompt_tokens], np.int64), cache)
        for index in range(options.max_new_tokens):
            token = sample(logits[0], options, seed, index)
            text = matcher.push(stream.push(token)) if stream and token not in eos else ""
            finish = _finish_reason(token in eos, matcher.stopped, index + 1 == options.max_new_tokens)
            if finish and stream:
                text += matcher.push(stream.flush()) + matcher.flush()
            yield Piece(token, text, finish)
            if finish:
                return
            logits = self.session.decode(np.array([token], np.int64), cache)


def load(path: str | Path, threads: int | None = None) -> Generator:
    """Open a bundle: read its manifest, check its files' sizes, load tokenizer and graph.

    Args:
        path: The bundle's folder.
        threads: For the arithmetic; None is every physical core this process may use.

    Raises:
        ManifestError: Not a bundle, a newer version, another task, or files missing or changed.
        TokenizerError: The tokenizer's file is corrupt.
        SessionError: ONNX Runtime cannot load the graph.
        MissingExtraError: onnxruntime is not installed.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if manifest.task != TASK:
        raise ManifestError(f"{folder}: the bundle's task is {manifest.task!r}, generating needs {TASK!r}")
    check_structure(folder, manifest)
    tokenizer = open_tokenizer(folder, manifest.tokenizer, manifest.tokens) if manifest.tokenizer else None
    return Generator(open_session(folder, manifest, threads=threads), tokenizer)


def generate(bundle: str | Path, prompt: Prompt, **options: Any) -> str:
    """Open a bundle, generate once, and return the text that continues the prompt.

    Args:
        bundle: The folder.
        prompt: Text, or token ids.
        options: The fields of ``SamplingOptions``.

    Raises:
        LlamaRuntimeError: Whatever ``load`` and ``Generator.generate`` refuse.
    """
    try:
        sampling = SamplingOptions(**options)
    except TypeError as error:
        raise OptionError(f"unknown option: {error}") from None
    return load(bundle).generate(prompt, sampling).text


def _choose_seed(options: SamplingOptions) -> int:
    return secrets.randbits(SEED_BITS) if options.seed is None else options.seed


def _finish_reason(eos: bool, stopped: bool, last: bool) -> FinishReason | None:
    if eos:
        return "eos"
    if stopped:
        return "stop"
    return "length" if last else None
