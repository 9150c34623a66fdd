"""Many prompts at once: each is prefilled by itself, all that run decode together, each ends on its own.

A prompt may join at any time; what a row says is what it would say alone. A row that fails takes its
error with it and nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llama_runtime.cache import KVCache, position_bytes
from llama_runtime.errors import LlamaRuntimeError, OptionError, PromptError, SessionError
from llama_runtime.generation import Generation, Piece, Timings
from llama_runtime.options import SamplingOptions
from llama_runtime.ragged import ragged_rows
from llama_runtime.row import Row
from llama_runtime.session import CHUNK_TOKENS

if TYPE_CHECKING:
    from llama_runtime.generate import Generator
    from llama_runtime.prompt import Prompt

MIB = 1 << 20


class Request:
    """A prompt in a batch, from waiting to the end.

    Attributes:
        generation: What came of it; None until it has ended, and when it failed.
        error: Why it failed; None otherwise.
    """

    def __init__(self, row: Row) -> None:
        self.generation: Generation | None = None
        self.error: LlamaRuntimeError | None = None
        self._row = row
        self._cancelled = False
        self._started_s = self._first_s = 0.0

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.generation is not None or self.error is not None

    def result(self) -> Generation | LlamaRuntimeError:
        """The generation, or the error; OptionError before it is done."""
        outcome = self.generation or self.error
        if outcome is None:
            raise OptionError("the prompt is not done yet", "step the batch until it is")
        return outcome

    def cancel(self) -> None:
        """End it before the batch's next step, with what it has by then; any thread may call this."""
        self._cancelled = True

    def _end(self, error: LlamaRuntimeError | None = None) -> None:
        now_s = time.perf_counter()
        if error is not None:
            self.error = error
            return
        started_s, first_s = self._started_s or now_s, self._first_s or now_s
        timings = Timings((first_s - started_s) * 1000, (now_s - first_s) * 1000)
        self.generation = self._row.generation(timings)


class Batch:
    """Rows that share a session and a cache; one thread calls ``step``, any ``submit`` and ``cancel``."""

    def __init__(
        self,
        generator: Generator,
        *,
        rows: int = 8,
        row_tokens: int | None = None,
        max_cache_bytes: int | None = None,
    ) -> None:
        """Make room.

        Args:
            generator: The open bundle.
            rows: The most that run at a time; further ones wait.
            row_tokens: The most positions of each, prompt and new tokens together; None is all the model has.
            max_cache_bytes: Fewer rows run at a time where their cache would need more than this.

        Raises:
            OptionError: A number below 1, or a cap that not even one row fits.
            PromptError: More positions than the model has.
        """
        shape, limits = generator.manifest.kv_cache, generator.manifest.limits
        self.row_tokens = limits.max_position_embeddings if row_tokens is None else row_tokens
        learned = generator.manifest.soft_prompt
        positions = self.row_tokens + (learned.positions if learned else 0)
        row_bytes = positions * position_bytes(shape)
        self.rows = rows
        if max_cache_bytes is not None:
            self.rows = min(rows, max_cache_bytes // max(1, row_bytes))
            if self.rows < 1 <= rows:
                raise OptionError(
                    f"a row of {self.row_tokens} tokens needs {row_bytes / MIB:.1f} MiB of cache, "
                    f"max_cache_bytes allows {max_cache_bytes / MIB:.1f}",
                    "allow more memory, or fewer tokens a row",
                )
        self._generator = generator
        self._ragged = ragged_rows(generator.session, self.rows, self.row_tokens)
        self._waiting: deque[Request] = deque()
        self._joining: tuple[Request, KVCache] | None = None
        self._running: list[Request] = []

    def submit(self, prompt: Prompt, options: SamplingOptions | None = None) -> Request:
        """Put a prompt in line.

        Args:
            prompt: As for ``Generator.generate``.
            options: The same; each row has its own.

        Raises:
            PromptError: As for ``Generator.generate``, or more tokens than a row has.
            OptionError: Beams, or more than one sequence: those are not for batches.
        """
        row = self._generator.new_row(prompt, options or SamplingOptions())
        _check_row(row)
        return self.submit_row(row)

    def submit_row(self, row: Row) -> Request:
        """Put a checked prompt in line.

        Raises:
            PromptError: More tokens than a row of this batch has.
        """
        prompt, new = len(row.prompt_tokens), row.options.max_new_tokens
        if prompt + new > self.row_tokens:
            raise PromptError(
                f"{prompt} tokens of prompt and {new} new ones are {prompt + new}, "
                f"a row of this batch has {self.row_tokens}",
                "open the batch with more row_tokens",
            )
        request = Request(row)
        self._waiting.append(request)
        return request

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self._waiting or self._joining or self._running)

    def run(self) -> None:
        """Step until nothing waits or runs."""
        while not self.idle:
            self.step()

    def step(self) -> list[tuple[Request, Piece]]:
        """Prefill up to a chunk of tokens, then decode one token for every row that runs.

        Returns:
            The pieces that came of it; a request ends with the piece that has a ``finish_reason``, or
            without one when it is cancelled or fails.
        """
        self._drop_cancelled()
        pieces: list[tuple[Request, Piece]] = []
        budget = CHUNK_TOKENS
        while budget > 0 and (joining := self._next()):
            budget -= self._prefill(*joining, pieces)
        if self._running:
            self._decode(pieces)
        return pieces

    def _drop_cancelled(self) -> None:
        for request in [request for request in self._waiting.copy() if request._cancelled]:
            self._waiting.remove(request)
            request._end()
        if self._joining and self._joining[0]._cancelled:
            self._joining[0]._end()
            self._joining = None
        for index in reversed(range(len(self._running))):
            if self._running[index]._cancelled:
                self._running[index]._end()
                self._leave(index)

    def _next(self) -> tuple[Request, KVCache] | None:
        """The row that is being prefilled, or the next one that may be."""
        if self._joining is None and self._waiting and len(self._running) < self.rows:
            request = self._waiting.popleft()
            request._started_s = time.perf_counter()
            self._joining = request, self._ragged.new_row()
        return self._joining

    def _prefill(self, request: Request, cache: KVCache, pieces: list[tuple[Request, Piece]]) -> int:
        """Read the next chunk of a prompt; chunks are the ones that the prompt alone is read in."""
        prompt = request._row.prompt_tokens
        chunk = prompt[cache.length : cache.length + CHUNK_TOKENS]
        try:
            logits = self._generator.session.prefill(
                np.array([chunk], np.int64), cache, text_tokens=len(prompt)
            )
        except SessionError as error:
            self._joining = None
            request._end(error)
            return len(chunk)
        if cache.length == len(prompt):
            self._joining = None
            self._ragged.join(cache)
            self._running.append(request)
            if self._take(request, logits[0], pieces):
                self._leave(len(self._running) - 1)
        return len(chunk)

    def _decode(self, pieces: list[tuple[Request, Piece]]) -> None:
        try:
            logits = self._ragged.decode([request._row.tokens[-1] for request in self._running])
        except SessionError as error:
            # ONNX Runtime cannot say whose fault it was; those that wait get their own chance.
            for index in reversed(range(len(self._running))):
                self._running[index]._end(error)
                self._leave(index)
            return
        ended = [self._take(request, logits[i], pieces) for i, request in enumerate(self._running)]
        for index in reversed(range(len(ended))):
            if ended[index]:
                self._leave(index)

    def _take(self, request: Request, logits: np.ndarray, pieces: list[tuple[Request, Piece]]) -> bool:
        """Give a row its logits; True when that has ended it."""
        try:
            piece = request._row.take(logits)
        except LlamaRuntimeError as error:
            request._end(error)
            return True
        request._first_s = request._first_s or time.perf_counter()
        pieces.append((request, piece))
        if piece.finish_reason:
            request._end()
        return request.done

    def _leave(self, index: int) -> None:
        """The last row takes the place, here as in the cache."""
        self._ragged.leave(index)
        self._running[index] = self._running[-1]
        self._running.pop()


def run_batch(
    generator: Generator,
    prompts: Sequence[Prompt],
    options: SamplingOptions | Sequence[SamplingOptions] | None,
    *,
    rows: int,
    max_cache_bytes: int | None,
) -> list[Generation | LlamaRuntimeError]:
    """What ``Generator.generate_batch`` does; see there."""
    given = options if isinstance(options, Sequence) else [options or SamplingOptions()] * len(prompts)
    if len(given) != len(prompts):
        raise OptionError(
            f"{len(given)} options for {len(prompts)} prompts, needs one for each or one for all"
        )
    accepted: dict[int, Row] = {}
    results: dict[int, Generation | LlamaRuntimeError] = {}
    for index, (prompt, options_of_row) in enumerate(zip(prompts, given, strict=True)):
        try:
            row = generator.new_row(prompt, options_of_row)
            _check_row(row)
            accepted[index] = row
        except LlamaRuntimeError as error:
            results[index] = error
    if accepted:
        longest = max(len(row.prompt_tokens) + row.options.max_new_tokens for row in accepted.values())
        rows = min(rows, len(accepted))
        batch = Batch(generator, rows=rows, row_tokens=longest, max_cache_bytes=max_cache_bytes)
        requests = {index: batch.submit_row(row) for index, row in accepted.items()}
        batch.run()
        results |= {index: request.result() for index, request in requests.items()}
    return [results[index] for index in range(len(prompts))]


def _check_row(row: Row) -> None:
    for name in ("num_beams", "num_return_sequences"):
        if getattr(row.options, name) > 1:
            hint = "call generate_sequences for each prompt"
            raise OptionError(f"{name} is {getattr(row.options, name)}, a row of a batch is one text", hint)
