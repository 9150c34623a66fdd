"""A chat turn by turn: its messages, and the cache that holds what the model has read of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from llama_runtime import chat_file
from llama_runtime.chat_template import Message, check_messages
from llama_runtime.errors import ChatError, OptionError
from llama_runtime.generation import Generation, Piece, Timings
from llama_runtime.options import SamplingOptions
from llama_runtime.prefix_cache import PrefixCache
from llama_runtime.row import Row
from llama_runtime.tokenizer import Tokenizer
from llama_runtime.transcript import encode_transcript

if TYPE_CHECKING:
    from llama_runtime.generate import Generator, OnPiece

Overflow = Literal["error", "drop_oldest"]
LEADING_ROLES = ("system", "developer")


class Conversation:
    """A chat with a model; one caller at a time.

    What the model has read or said is not read again: each turn costs its own tokens alone, however
    long the chat is. An answer that is broken off, by leaving the loop or by Ctrl-C, stays in the
    history as far as it came.

    >>> chat = Conversation(llama_runtime.load("artifacts/my-llama"), system="Be brief.")  # doctest: +SKIP
    >>> chat.send("Who are you?").text  # doctest: +SKIP

    Attributes:
        messages: The history; an answer is added when it ends. May be edited between turns.
        tools: Passed to the template.
        overflow: What happens when the chat no longer fits the model: "error" raises, "drop_oldest"
            leaves out the oldest turns, never the system message.
        dropped_messages: How many of ``messages`` are left out of the prompt by now.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        system: str | None = None,
        messages: Sequence[Message] = (),
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        overflow: Overflow = "error",
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a chat.

        Args:
            generator: From ``load``.
            system: The system message, put in front of ``messages``.
            messages: A history to go on from.
            tools: JSON schemas of functions that the model may call.
            template: The name of one of the bundle's chat templates.
            overflow: "error" or "drop_oldest".
            variables: More of what the template may read, ``{"date_string": ...}``.

        Raises:
            ChatError: The bundle has no such template, or the messages are malformed.
            TokenizerError: The bundle has no tokenizer.
            OptionError: An unknown ``overflow``.
        """
        if overflow not in get_args(Overflow):
            raise OptionError(f"overflow is {overflow!r}, needs one of {', '.join(get_args(Overflow))}")
        if messages:
            check_messages(messages)
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages += messages
        self.tools = tools
        self.overflow = overflow
        self.dropped_messages = 0
        self._generator = generator
        self._template = generator.chat_template(template, tools)
        self._variables = variables or {}
        self._cache = PrefixCache(generator.session)
        self._known: list[int] = []

    @property
    def reused_tokens(self) -> int:
        """How many tokens of the last prompt were in the cache already."""
        return self._cache.reused_tokens

    def stream(
        self, message: str | Message | None, options: SamplingOptions | None = None
    ) -> Iterator[Piece]:
        """Answer a message piece by piece; it is checked now, the work is done as pieces are taken.

        Args:
            message: What the user says, or a whole message (``{"role": "tool", ...}``); None answers
                the history as it is.
            options: None is greedy, 128 tokens.

        Raises:
            ChatError: The template refuses the messages, or they do not fit the model.
            PromptError: A text is not valid UTF-8.
        """
        messages, row = self._begin(message, options or SamplingOptions())
        return self._pieces(messages, row)

    def send(
        self,
        message: str | Message | None,
        options: SamplingOptions | None = None,
        on_piece: OnPiece | None = None,
    ) -> Generation:
        """Answer a message; the arguments and errors are those of ``stream`` and ``Generator.generate``."""
        messages, row = self._begin(message, options or SamplingOptions())
        with _Kept(self, messages, row):
            return self._generator.run(row, self._cache, on_piece)

    def new_row(self, message: str | Message | None, options: SamplingOptions | None = None) -> Row:
        """Check a message and begin its answer as a row of a ``Batch``; the history does not change.

        The arguments and errors are those of ``stream``.
        """
        return self._begin(message, options or SamplingOptions())[1]

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = self.messages[: _leading(self.messages)]
        self.dropped_messages = 0

    def save(self, path: str | Path) -> None:
        """Write history and cache to a file, so that ``restore`` goes on without reading anything again.

        Raises:
            CacheError: The file cannot be written.
        """
        state = chat_file.ChatState(
            check_messages(self.messages) if self.messages else [], self.dropped_messages, self._known
        )
        chat_file.save(Path(path), self._generator.manifest, state, self._cache)

    def restore(self, path: str | Path) -> None:
        """Go on from a file that ``save`` wrote, in place of this chat's history.

        Raises:
            CacheError: It cannot be read, is corrupt, or belongs to another bundle.
        """
        state, cache = chat_file.load(Path(path), self._generator.session)
        self.messages, self.dropped_messages = list(state.messages), state.dropped_messages
        self._known, self._cache = list(state.known_tokens), cache

    def _begin(self, message: str | Message | None, options: SamplingOptions) -> tuple[list[Message], Row]:
        if options.num_beams > 1 or options.num_return_sequences > 1:
            raise OptionError("num_beams and num_return_sequences need 1 each: a chat has one answer")
        messages = list(self.messages)
        if message is not None:
            messages.append({"role": "user", "content": message} if isinstance(message, str) else message)
        check_messages(messages)
        tokens = self._fit(messages, options.max_new_tokens)
        return messages, self._generator.new_row(tokens, options, answer_ends=self._answer_ends())

    def _pieces(self, messages: list[Message], row: Row) -> Iterator[Piece]:
        with _Kept(self, messages, row):
            yield from self._generator.pieces(row, self._cache)

    def _fit(self, messages: Sequence[Message], new_tokens: int) -> list[int]:
        """Encode the chat; where it is too long, drop turns or refuse it."""
        limit = self._generator.manifest.limits.max_position_embeddings
        first, dropped = _leading(messages), min(self.dropped_messages, len(messages) - 1)
        while True:
            tokens = self._encode([*messages[:first], *messages[first + dropped :]])
            if len(tokens) + new_tokens <= limit:
                self.dropped_messages = dropped
                return tokens
            users = range(first + dropped + 1, len(messages))
            next_turn = next((i for i in users if messages[i].get("role") == "user"), None)
            if self.overflow == "error" or next_turn is None:
                raise _too_long(len(tokens), new_tokens, limit, self.overflow)
            dropped = next_turn - first

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        parts = self._template.parts(messages, tools=self.tools, **self._variables)
        return encode_transcript(parts, self._known, self._tokenizer)

    @property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = self._generator.tokenizer
        assert tokenizer is not None  # chat_template refuses a bundle without one.
        return tokenizer

    def _answer_ends(self) -> list[int]:
        templates = self._generator.manifest.chat_template
        name = templates.special_tokens.get("eos_token") if templates else None
        token = self._tokenizer.vocabulary.added_tokens.get(name or "")
        return [] if token is None else [token]

    def _keep(self, messages: list[Message], row: Row) -> None:
        if not row.tokens:
            return
        text = row.generation(Timings(0.0, 0.0)).text
        self.messages = [*messages, {"role": "assistant", "content": text}]
        self._known = [*row.prompt_tokens, *row.tokens]


class _Kept:
    """Adds the message and what there is of its answer to the history, however the answer ends."""

    def __init__(self, chat: Conversation, messages: list[Message], row: Row) -> None:
        self._chat, self._messages, self._row = chat, messages, row

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._chat._keep(self._messages, self._row)


def _leading(messages: Sequence[Message]) -> int:
    """How many messages stand in front of the first turn: the system's."""
    roles = enumerate(message.get("role") for message in messages)
    return next((i for i, role in roles if role not in LEADING_ROLES), len(messages))


def _too_long(tokens: int, new_tokens: int, limit: int, overflow: Overflow) -> ChatError:
    found = f"is {tokens} tokens, and {new_tokens} new ones are asked for; the model has {limit} positions"
    if overflow == "drop_oldest":
        hint = "ask for fewer new tokens, or send a shorter message"
        return ChatError(f"the last turn with the system message {found}", hint)
    hint = "ask for fewer new tokens, begin anew, or let the oldest turns go (overflow: drop_oldest)"
    return ChatError(f"the chat {found}", hint)
