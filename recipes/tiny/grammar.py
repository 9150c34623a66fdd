"""A grammar with agreement: one description, read in two directions.

A rule is a tuple of templates, one of which is taken. In a template

    {Opening}      stands for any template of the rule of that name (rules are capitalised)
    {hero}         is the name of the entry that the variable ``hero`` is bound to in this text
    {hero.his}     is another form of that entry; {hero.His} is the same with a capital letter
    {=friend}      only refers back: the variable must be bound by something earlier in the text

A variable is bound where it first appears and keeps its entry to the end of the text, which is what makes
names, pronouns and objects agree across sentences. Writing a text and recognising one are the same
walk over the rules; only what happens at a piece of literal text differs, so the two cannot drift apart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

Entry = dict[str, str]
Bindings = dict[str, Entry]
Item = TypeVar("Item")


class Slot(NamedTuple):
    """A place in a template that a variable fills."""

    variable: str
    form: str
    refers_back: bool


class Call(NamedTuple):
    """A place in a template that a rule fills."""

    rule: str


Part = str | Slot | Call


@dataclass(frozen=True)
class Direction:
    """What a walk does at literal text, and in which order it tries alternatives.

    Attributes:
        take: Text state and literal to the state after it; None where the literal cannot stand there.
        order: The alternatives, in the order of trying.
    """

    take: Callable[[str, str], str | None]
    order: Callable[[Sequence[Item]], Sequence[Item]]


@dataclass(frozen=True)
class Grammar:
    """Rules, words and the constraints between them.

    Attributes:
        rules: Templates of each rule; a text is an instance of the rule ``Story``.
        lexicon: Entries of each kind of word; a form is looked up in its entry.
        variables: The kind of each variable. Two variables of a kind never share an entry.
        links: Pairs ``("spot.place", "place.name")`` of forms that must be equal once both are bound.
    """

    rules: dict[str, tuple[str, ...]]
    lexicon: dict[str, tuple[Entry, ...]]
    variables: dict[str, str]
    links: tuple[tuple[str, str], ...]
    _templates: dict[str, tuple[tuple[Part, ...], ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parsed = {name: tuple(map(_parse_template, rule)) for name, rule in self.rules.items()}
        object.__setattr__(self, "_templates", parsed)

    def generate(self, rng: random.Random) -> str:
        """Write one text; every choice is uniform among those that can be completed."""
        direction = Direction(lambda written, literal: written + literal, lambda items: _shuffled(items, rng))
        text, _ = next(self._derive((Call("Story"),), "", {}, direction))
        return text

    def parses(self, text: str) -> bool:
        """Say whether ``generate`` can write exactly this text."""
        direction = Direction(_strip_prefix, lambda items: items)
        return any(rest == "" for rest, _ in self._derive((Call("Story"),), text, {}, direction))

    def _derive(
        self, parts: tuple[Part, ...], state: str, bindings: Bindings, direction: Direction
    ) -> Iterator[tuple[str, Bindings]]:
        """Yield every way through ``parts``: the text state after them, and what is bound by then."""
        if not parts:
            yield state, bindings
            return
        for after, bound in self._derive_one(parts[0], state, bindings, direction):
            yield from self._derive(parts[1:], after, bound, direction)

    def _derive_one(
        self, part: Part, state: str, bindings: Bindings, direction: Direction
    ) -> Iterator[tuple[str, Bindings]]:
        if isinstance(part, Call):
            for template in direction.order(self._templates[part.rule]):
                yield from self._derive(template, state, bindings, direction)
            return
        if isinstance(part, str):
            after = direction.take(state, part)
            if after is not None:
                yield after, bindings
            return
        for entry in self._candidates(part, bindings, direction):
            after = direction.take(state, _inflect(entry, part.form))
            if after is not None:
                yield after, bindings if part.variable in bindings else {**bindings, part.variable: entry}

    def _candidates(self, slot: Slot, bindings: Bindings, direction: Direction) -> Iterator[Entry]:
        if slot.variable in bindings:
            yield bindings[slot.variable]
        elif not slot.refers_back:
            kind = self.variables[slot.variable]
            taken = [entry for name, entry in bindings.items() if self.variables[name] == kind]
            for entry in direction.order(self.lexicon[kind]):
                if entry not in taken and self._agrees({**bindings, slot.variable: entry}):
                    yield entry

    def _agrees(self, bindings: Bindings) -> bool:
        for link in self.links:
            (left, left_form), (right, right_form) = (end.split(".") for end in link)
            both = left in bindings and right in bindings
            if both and bindings[left][left_form] != bindings[right][right_form]:
                return False
        return True


def _parse_template(template: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    for literal, equals, name, form in re.findall(r"([^{]+)|\{(=?)(\w+)(?:\.(\w+))?\}", template):
        if literal:
            parts.append(literal)
        elif name[0].isupper():
            parts.append(Call(name))
        else:
            parts.append(Slot(name, form or "name", bool(equals)))
    return tuple(parts)


def _inflect(entry: Entry, form: str) -> str:
    word = entry[form.lower()]
    return word[0].upper() + word[1:] if form[0].isupper() else word


def _strip_prefix(text: str, literal: str) -> str | None:
    return text[len(literal) :] if text.startswith(literal) else None


def _shuffled(items: Sequence[Item], rng: random.Random) -> Sequence[Item]:
    return rng.sample(items, len(items))
