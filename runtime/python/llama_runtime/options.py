"""What to generate and how: one frozen record, checked when made; FORMAT.md says what each field does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llama_runtime.errors import OptionError

# Field -> the least it may be.
INTEGERS = {
    "top_k": 0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "max_new_tokens": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "prompt_lookup_num_tokens": 0,
}
CONSTRAINTS = ("json_schema", "regex", "grammar")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What to generate and how; checked when made.

    Attributes:
        temperature: 0 is greedy, and leaves top_k, top_p, min_p and seed without effect.
        top_k: How many of the best candidates to keep; 0 is all.
        top_p: Keep the fewest best candidates that hold this share of the probability.
        min_p: Keep candidates at least this share as likely as the best one; 0 is all.
        repetition_penalty: Divides the logits of tokens in prompt and text, multiplies negative ones;
            1 is none.
        presence_penalty: Taken from the logit of every token in the text so far.
        frequency_penalty: The same, for each time the token is there.
        no_repeat_ngram_size: No sequence of so many tokens comes twice, prompt included; 0 is none.
        logit_bias: Token id -> what is added to its logit; minus infinity forbids it.
        min_new_tokens: No end-of-sequence token before so many others.
        max_new_tokens: Where to end at the latest.
        seed: Of the draws, below 2**64; None takes one from the system.
        num_beams: Above 1: beam search, the likeliest of so many texts that grow side by side.
        length_penalty: Beam search divides a text's log-probability by its length to this power.
        early_stopping: True: end as soon as ``num_beams`` texts are complete; False: when none of the growing
            ones is likely to beat them; "never": when none can.
        num_return_sequences: How many texts to return: the best beams, or as many drawn ones.
        logprobs: Tell the log-probability of every token, and of the so many likeliest in its place.
        json_schema: The text is JSON that conforms to this schema (JSON text, or the parsed object).
        regex: The text matches this regular expression as a whole.
        grammar: The text conforms to this grammar in Lark's notation.
        stop: Strings that end the text and are not part of it.
        ignore_eos: Go on after an end-of-sequence token (for measuring).
        prompt_lookup_num_tokens: Read so many tokens ahead wherever the text repeats prompt or text: the same
            tokens in less time; 0 reads none. A batch, whose rows are read together, does without.
        return_full_text: The text begins with the prompt.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    min_new_tokens: int = 0
    max_new_tokens: int = 128
    seed: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    logprobs: int | None = None
    json_schema: str | Mapping[str, Any] | None = field(default=None, hash=False)
    regex: str | None = None
    grammar: str | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    return_full_text: bool = False
    prompt_lookup_num_tokens: int = 0

    def __post_init__(self) -> None:
        self._check_integers()
        self._check_numbers()
        self._check_kinds()
        self._check_combinations()

    @property
    def constrained(self) -> bool:
        """Whether a schema, a regular expression or a grammar shapes the text."""
        return any(getattr(self, name) is not None for name in CONSTRAINTS)

    @property
    def changes_logits(self) -> bool:
        """Whether any processor has work to do."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.no_repeat_ngram_size
            or self.min_new_tokens
        )

    def _check_integers(self) -> None:
        for name, least in INTEGERS.items():
            value = getattr(self, name)
            if type(value) is not int:
                raise OptionError(f"{name} is {value!r}, needs an integer")
            if value < least:
                raise OptionError(f"{name} is {value}, needs at least {least}")
        for name, limit, shown in (("seed", 1 << 64, "2**64"), ("logprobs", 1 << 31, "2**31")):
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                raise OptionError(f"{name} is {value!r}, needs an integer")
            if value is not None and not 0 <= value < limit:
                raise OptionError(f"{name} is {value}, needs 0 to {shown} - 1")

    def _check_numbers(self) -> None:
        numbers = (
            ("temperature", self.temperature, self.temperature >= 0, "a number of at least 0"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "more than 0"),
            ("presence_penalty", self.presence_penalty, True, "a finite number"),
            ("frequency_penalty", self.frequency_penalty, True, "a finite number"),
            ("length_penalty", self.length_penalty, True, "a finite number"),
        )
        for name, value, allowed, needs in numbers:
            if not (allowed and math.isfinite(value)):
                raise OptionError(f"{name} is {value}, needs {needs}")

    def _check_kinds(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(stop, str) and stop for stop in self.stop):
            hint = "write stop=('...',)"
            raise OptionError(f"stop is {self.stop!r}, needs strings that are not empty", hint)
        for token, bias in self.logit_bias.items():
            # Minus infinity forbids a token; NaN compares as false.
            if type(token) is not int or token < 0 or not bias < math.inf:
                raise OptionError(f"logit_bias has {token!r}: {bias!r}, needs token ids with finite numbers")
        if self.early_stopping not in (True, False, "never"):
            raise OptionError(f"early_stopping is {self.early_stopping!r}, needs True, False or 'never'")

    def _check_combinations(self) -> None:
        if self.min_new_tokens > self.max_new_tokens:
            wanted, most = self.min_new_tokens, self.max_new_tokens
            raise OptionError(f"min_new_tokens is {wanted}, needs at most max_new_tokens, {most}")
        constraints = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(constraints) > 1:
            raise OptionError(f"{' and '.join(constraints)} are given, needs one of them")
        if constraints and self.ignore_eos:
            raise OptionError(f"ignore_eos with {constraints[0]}: a text that must end cannot go on")
        if self.num_beams > 1:
            alone = ("temperature", "stop", "prompt_lookup_num_tokens")
            barred = [name for name in alone if getattr(self, name)] + constraints
            if barred:
                hint = "leave one of them out"
                raise OptionError(f"num_beams is {self.num_beams} with {barred[0]}: needs one beam", hint)
        most = self.num_beams if self.num_beams > 1 or self.temperature == 0 else self.num_return_sequences
        if self.num_return_sequences > most:
            raise OptionError(
                f"num_return_sequences is {self.num_return_sequences}, needs at most num_beams, {most}, "
                "where nothing is drawn",
                "raise num_beams, or give a temperature",
            )
