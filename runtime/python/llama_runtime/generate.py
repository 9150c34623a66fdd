"""A bundle as a text generator: prefill the prompt, then sample and decode until something ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_runtime import lookup
from llama_runtime.batch import run_batch
from llama_runtime.beam import BeamSearch
from llama_runtime.chat_template import ChatTemplate, Message, choose_template
from llama_runtime.conversation import Conversation, Overflow
from llama_runtime.errors import LlamaRuntimeError, OptionError, TokenizerError
from llama_runtime.generation import Generation, Piece, Timings
from llama_runtime.grammar import GrammarConstraint, GrammarVocabulary
from llama_runtime.manifest import Manifest
from llama_runtime.opening import Device
from llama_runtime.options import SamplingOptions
from llama_runtime.prefix_cache import PrefixCache
from llama_runtime.prompt import Prompt, check_prompt
from llama_runtime.row import Row
from llama_runtime.session import Session
from llama_runtime.tasks.opening import open_bundle
from llama_runtime.tokenizer import Tokenizer

OnPiece = Callable[[Piece], object]
TASK = "text-generation"


class Generator:
    """An open bundle; threads may share it."""

    def __init__(self, session: Session, tokenizer: Tokenizer | None) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self._templates: dict[str, ChatTemplate] = {}
        self._grammar_vocabulary: GrammarVocabulary | None = None

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
        _require_one_sequence(options)
        _require_one_beam(options)
        return self.pieces(self.new_row(prompt, options))

    def generate(
        self, prompt: Prompt, options: SamplingOptions | None = None, on_piece: OnPiece | None = None
    ) -> Generation:
        """Generate until the end, or search for the best beam.

        The arguments and errors are those of ``stream``; ``on_piece`` is called with every piece as it
        comes, which a beam search cannot do.
        """
        options = options or SamplingOptions()
        _require_one_sequence(options)
        if on_piece is None:
            return self.generate_sequences(prompt, options)[0]
        _require_one_beam(options)
        return self.run(self.new_row(prompt, options), on_piece=on_piece)

    def chat(
        self,
        messages: Sequence[Message],
        options: SamplingOptions | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        overflow: Overflow = "error",
        on_piece: OnPiece | None = None,
    ) -> Generation:
        """Answer a chat; a ``Conversation`` does the same turn by turn, without reading anything twice.

        Args:
            messages: ``{"role": "user", "content": "..."}`` and their like; the answer follows the last.
            options: None is greedy, 128 tokens.
            tools: Passed to the template: JSON schemas of functions that the model may call.
            template: The name of one of the bundle's chat templates; default as ``choose_template`` says.
            overflow: What to do when the chat no longer fits: "error", or "drop_oldest" turns.
            on_piece: Called with every piece as it comes.

        Raises:
            ChatError: No template, it refuses the messages, or they do not fit the model.
            PromptError: A text is not valid UTF-8.
        """
        chat = Conversation(self, messages=messages, tools=tools, template=template, overflow=overflow)
        return chat.send(None, options, on_piece)

    def chat_template(self, name: str | None = None, tools: object = None) -> ChatTemplate:
        """Open one of the bundle's chat templates, "tool_use" where there are tools and it exists.

        Raises:
            ChatError: There is none of that name, or it is not Jinja.
            TokenizerError: The bundle has no tokenizer.
        """
        templates = self.manifest.chat_template
        name = choose_template(templates, tools, name)
        if self.tokenizer is None:
            raise TokenizerError("the bundle has no tokenizer", "give the prompt as token ids")
        if name not in self._templates and templates is not None:
            source, variables = templates.sources[name], templates.special_tokens
            self._templates[name] = ChatTemplate(name, source, variables, self.tokenizer)
        return self._templates[name]

    def generate_sequences(
        self, prompt: Prompt, options: SamplingOptions | None = None
    ) -> tuple[Generation, ...]:
        """Generate ``num_return_sequences`` texts: the best beams, or drawn ones whose seeds count up.

        The arguments and errors are those of ``stream``.
        """
        options = options or SamplingOptions()
        row = self.new_row(prompt, options)
        if options.num_beams > 1:
            return self._search(row, prompt)
        seeds = [(row.seed + i) % (1 << 64) for i in range(options.num_return_sequences)]
        return tuple(self.run(self.new_row(prompt, options, seed)) for seed in seeds)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions | Sequence[SamplingOptions] | None = None,
        *,
        rows: int = 8,
        max_cache_bytes: int | None = None,
    ) -> list[Generation | LlamaRuntimeError]:
        """Generate for many prompts at once; each gets what it would get alone.

        Args:
            prompts: Of any lengths.
            options: For all, or one for each.
            rows: The most that run at a time.
            max_cache_bytes: As for ``Batch``.

        Returns:
            For each prompt, in order, its generation or the error that it alone ended with.

        Raises:
            OptionError: Not as many options as prompts, or a cap that not even one row fits.
        """
        return run_batch(self, prompts, options, rows=rows, max_cache_bytes=max_cache_bytes)

    def new_row(
        self,
        prompt: Prompt,
        options: SamplingOptions,
        seed: int | None = None,
        *,
        answer_ends: Sequence[int] | None = None,
    ) -> Row:
        """Check a prompt and begin a text that ``pieces`` or ``run`` generates.

        Args:
            prompt: As for ``stream``.
            options: As for ``stream``.
            seed: Instead of the options'.
            answer_ends: The text is an answer, which does not continue the prompt's last word; it ends
                at these tokens as well.
        """
        prompt_tokens = check_prompt(prompt, options, self.manifest, self.tokenizer)
        if options.prompt_lookup_num_tokens:
            lookup.check_lookup(self.manifest)
        ends = (*self.manifest.tokens.eos_token_ids, *(answer_ends or ()))
        return Row(
            prompt_tokens,
            options,
            eos_token_ids=ends,
            tokenizer=self.tokenizer,
            opening=self._prompt_text(prompt) if options.return_full_text else "",
            opens_text=answer_ends is not None,
            constraint=self._constraint(prompt_tokens, options, ends, answer_ends is not None),
            seed=seed,
        )

    def _constraint(
        self, prompt_tokens: Sequence[int], options: SamplingOptions, ends: Sequence[int], opens_text: bool
    ) -> GrammarConstraint | None:
        if not options.constrained:
            return None
        if self.tokenizer is None:
            raise TokenizerError("the bundle has no tokenizer", "ask for no schema, regex or grammar")
        if self._grammar_vocabulary is None:
            self._grammar_vocabulary = GrammarVocabulary(self.tokenizer, self.manifest.limits.vocab_size)
        opens_text = opens_text or self.tokenizer.vocabulary.special_ids.issuperset(prompt_tokens)
        return self._grammar_vocabulary.constraint(options, ends, opens_text)

    def _prompt_text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        return self.tokenizer.decode(prompt) if self.tokenizer else ""

    def run(self, row: Row, cache: PrefixCache | None = None, on_piece: OnPiece | None = None) -> Generation:
        """Generate a row until its end; the arguments are those of ``pieces`` and ``generate``."""
        start_s, first_s = time.perf_counter(), 0.0
        for piece in self.pieces(row, cache):
            first_s = first_s or time.perf_counter()
            if on_piece:
                on_piece(piece)
        end_s = time.perf_counter()
        return row.generation(Timings((first_s - start_s) * 1000, (end_s - first_s) * 1000))

    def _search(self, row: Row, prompt: Prompt) -> tuple[Generation, ...]:
        options, start_s = row.options, time.perf_counter()
        search = BeamSearch(row.prompt_tokens, options, self.manifest.tokens.eos_token_ids)
        cache = self.session.new_cache(capacity=len(row.prompt_tokens) + options.max_new_tokens)
        logits = self.session.prefill(np.array([row.prompt_tokens], np.int64), cache)
        prefilled_s = time.perf_counter()
        logits = np.repeat(logits, options.num_beams, axis=0)  # [N, V]
        while (parents := search.advance(logits)) is not None:
            # The first time, all of them continue the prompt, which is one row.
            cache.select_rows(parents if cache.rows > 1 else [0] * options.num_beams)
            tokens = np.array([beam.tokens[-1] for beam in search.running], np.int64)
            logits = self.session.decode(tokens, cache)
        end_s = time.perf_counter()
        timings = Timings((prefilled_s - start_s) * 1000, (end_s - prefilled_s) * 1000)
        generations = []
        for beam in search.finished[: options.num_return_sequences]:
            text = self.new_row(prompt, options, row.seed)
            for index, token in enumerate(beam.tokens):
                text.push(token, beam.logprobs[index] if beam.logprobs else None)
            generations.append(text.generation(timings, beam.score))
        return tuple(generations)

    def pieces(self, row: Row, cache: PrefixCache | None = None) -> Iterator[Piece]:
        """Generate a row piece by piece.

        Args:
            row: From ``new_row``.
            cache: What it shares with the prompt is not read again; None begins an empty one.
        """
        cache = cache or PrefixCache(self.session)
        logits = cache.prefill(row.prompt_tokens, row.options.max_new_tokens)
        if row.options.prompt_lookup_num_tokens:
            yield from lookup.pieces(row, cache, logits[0])
            return
        while True:
            piece = row.take(logits[0])
            yield piece
            if piece.finish_reason:
                return
            logits = cache.decode(piece.token)


def load(
    path: str | Path, threads: int | None = None, *, device: Device = "cpu", engine: str | None = None
) -> Generator:
    """Open a bundle: read its manifest, check its files' sizes, load tokenizer and graph.

    Args:
        path: The bundle's folder.
        threads: For the arithmetic; None is every physical core this process may use.
        device: ``cpu`` and ``cuda`` run the bundle's graph with ONNX Runtime, ``tensorrt`` its engine.
        engine: Which of several engines.

    Raises:
        ManifestError: Not a bundle, a newer version, another task, or files missing or changed.
        TokenizerError: The tokenizer's file is corrupt.
        SessionError: ONNX Runtime cannot load the graph.
        EngineError: The engine is missing, damaged, or made for another version or GPU.
        MissingExtraError: onnxruntime is not installed, or not for this device.
    """
    return Generator(*open_bundle(path, TASK, threads, device, engine))


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


def _require_one_beam(options: SamplingOptions) -> None:
    if options.num_beams > 1:
        raise OptionError(
            f"num_beams is {options.num_beams}: no beam's text is final before its end",
            "generate without streaming",
        )


def _require_one_sequence(options: SamplingOptions) -> None:
    if options.num_return_sequences > 1:
        raise OptionError(
            f"num_return_sequences is {options.num_return_sequences}, one text is asked for",
            "call generate_sequences",
        )
