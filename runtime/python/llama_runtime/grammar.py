"""Text that conforms to a JSON schema, a regular expression or a grammar, through llguidance.

The only file that imports llguidance. It is told what bytes every token stands for, so both kinds of
vocabulary are alike to it; V is the model's vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llama_runtime.errors import MissingExtraError, OptionError
from llama_runtime.options import SamplingOptions
from llama_runtime.tokenizer import Tokenizer

# JSON as Python writes it: a model that may put spaces anywhere may put nothing but spaces.
JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class GrammarVocabulary:
    """The model's tokens as llguidance wants them; made once for a bundle.

    Attributes:
        tokenizer: Whose bytes the grammar sees.
        size: V.
    """

    tokenizer: Tokenizer
    size: int

    def constraint(
        self, options: SamplingOptions, eos_token_ids: Sequence[int], opens_text: bool
    ) -> GrammarConstraint:
        """Compile what the options ask for.

        Args:
            options: With a ``json_schema``, ``regex`` or ``grammar``.
            eos_token_ids: Allowed where the text is complete.
            opens_text: The first token loses its leading space, as in ``TextStream``.

        Raises:
            MissingExtraError: llguidance is not installed.
            OptionError: It cannot be parsed, or no text satisfies it.
        """
        llguidance = _library()
        name, source = _compile(llguidance, options)
        failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(
            source, self._library_tokenizer
        )
        if failed:
            raise OptionError(f"{name}: {_one_line(messages[0])}")
        matcher = llguidance.LLMatcher(self._library_tokenizer, source, log_level=0)
        return GrammarConstraint(matcher, self.size, eos_token_ids, self._openings if opens_text else None)

    @cached_property
    def _library_tokenizer(self) -> Any:
        llguidance = _library()
        wrapper = llguidance.TokenizerWrapper(_LibraryVocabulary(self.tokenizer, self.size))
        # No slices: a small vocabulary needs none, and building them costs more than they save.
        return llguidance.LLTokenizer(wrapper, eos_token=self.size)

    @cached_property
    def _openings(self) -> np.ndarray:
        """[V] int64: the token that stands for what each token shows when it opens a text, or V."""
        vocabulary = self.tokenizer.vocabulary
        ids = {vocabulary.token_bytes(token): token for token in reversed(range(self.size))}
        shown = [vocabulary.first_token_bytes(token) for token in range(self.size)]
        return np.array(
            [
                token if shown[token] == vocabulary.token_bytes(token) else ids.get(shown[token], self.size)
                for token in range(self.size)
            ]
        )


class GrammarConstraint:
    """What one text may go on with."""

    def __init__(
        self, matcher: Any, size: int, eos_token_ids: Sequence[int], openings: np.ndarray | None
    ) -> None:
        self._matcher, self._size = matcher, size
        self._eos = list(eos_token_ids)
        self._openings = openings

    def allowed(self) -> np.ndarray:
        """[V] bool: which tokens may follow.

        Raises:
            OptionError: The grammar became too complex for llguidance.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self._size + 1].astype(bool)
        self._check()
        may_end = mask[self._size]
        mask[self._size] = False
        mask = mask[: self._size] if self._openings is None else mask[self._openings]
        mask[self._eos] = may_end
        return mask

    def accept(self, token: int) -> bool:
        """Take the token that was chosen; True when the text is complete and nothing may follow."""
        if token in self._eos:
            return True
        if self._openings is not None:
            token, self._openings = int(self._openings[token]), None
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise OptionError(f"the grammar cannot be followed: {_one_line(self._matcher.get_error())}")


class _LibraryVocabulary:
    """Token bytes under the names that llguidance asks for; its end-of-text token is V, which is nobody's."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        vocabulary = tokenizer.vocabulary
        self.tokens = [vocabulary.token_bytes(token) for token in range(size)] + [b"<end>"]
        self.special_token_ids = [*sorted(token for token in vocabulary.special_ids if token < size), size]
        self.eos_token_id, self.bos_token_id = size, None
        special = set(self.special_token_ids)
        self._ids = {piece: i for i, piece in enumerate(self.tokens) if piece and i not in special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes | str) -> list[int]:
        """Cut text into the longest tokens, byte-exact, which the vocabulary's own encoder need not be."""
        rest, tokens = text.encode() if isinstance(text, str) else text, []
        while rest:
            lengths = range(min(self._longest, len(rest)), 0, -1)
            length = next((n for n in lengths if rest[:n] in self._ids), 0)
            if not length:
                break
            tokens.append(self._ids[rest[:length]])
            rest = rest[length:]
        return tokens


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        hint = "pip install 'llama-export[grammar]'"
        raise MissingExtraError(f"llguidance is not installed ({error})", hint) from None
    return llguidance


def _compile(llguidance: Any, options: SamplingOptions) -> tuple[str, str]:
    """The option's name, and what it asks for in llguidance's own notation."""
    if options.regex is not None:
        return "regex", llguidance.LLMatcher.grammar_from_regex(options.regex)
    if options.grammar is not None:
        return "grammar", llguidance.LLMatcher.grammar_from_lark(options.grammar)
    schema: Any = options.json_schema
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise OptionError(f"json_schema: not JSON: {error}") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise OptionError(f"json_schema: is {json.dumps(schema)[:60]}, needs an object")
    try:
        return "json_schema", llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=JSON_LAYOUT)
    except (TypeError, ValueError) as error:
        raise OptionError(f"json_schema: {_one_line(str(error))}") from None


def _one_line(message: str) -> str:
    """What went wrong, without the picture of where."""
    lines = [line.strip() for line in message.split("<state>")[0].splitlines()]
    said = [line for line in lines if re.search(r"\w", line) and not re.match(r"\d+ \|", line)]
    return " ".join(said)[:300]
