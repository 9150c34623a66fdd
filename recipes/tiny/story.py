"""The little world of the demo checkpoint: its words, its four plots, and how sentences are told.

Everything here is data; ``grammar.py`` reads it to write stories and to recognise them.
"""

from __future__ import annotations

import random

from grammar import Entry, Grammar


def _table(forms: str, *rows: str) -> tuple[Entry, ...]:
    """Make an entry of each row, whose columns are separated by bars."""
    names = forms.split("|")
    return tuple(dict(zip(names, row.split("|"), strict=True)) for row in rows)


# Letters beyond ASCII are never in the vocabulary: Zoë and José are spelled with byte pieces.
_GIRLS, _BOYS = ("Anna", "Clara", "Emma", "Lily", "Zoë"), ("Ben", "Jack", "José", "Leo", "Omar")
_GIRL_FRIENDS, _BOY_FRIENDS = ("Ivy", "Mira", "Nina", "Rosa", "Ruth"), ("Finn", "Max", "Paul", "Sam", "Tom")


def _children(girls: tuple[str, ...], boys: tuple[str, ...]) -> tuple[Entry, ...]:
    return _table(
        "name|child|he|his|him",
        *(f"{name}|girl|she|her|her" for name in girls),
        *(f"{name}|boy|he|his|him" for name in boys),
    )


LEXICON: dict[str, tuple[Entry, ...]] = {
    "child": _children(_GIRLS, _BOYS),
    "friend": _children(_GIRL_FRIENDS, _BOY_FRIENDS),
    "nature": _table("name", "brave", "clever", "happy", "kind", "merry", "quiet"),
    "relative": _table("name", "aunt", "father", "grandfather", "grandmother", "mother", "uncle"),
    "daytime": _table("name", "afternoon", "evening", "morning"),
    "toy": _table(
        "name|play|part|tool", "ball|throw|seam|a needle", "boat|sail|sail|some thread",
        "book|read|cover|some tape", "drum|play|skin|some leather", "kite|fly|tail|some string",
        "wagon|pull|wheel|a nail",
    ),
    "place": _table(
        "name", "the forest", "the garden", "the market", "the park", "the valley", "the village"
    ),
    "animal": _table(
        "name|cried|food", "cat|meowed|some milk", "dog|barked|a bone", "duck|quacked|some bread",
        "goat|bleated|some grass", "hen|clucked|some corn", "horse|neighed|a carrot",
        "mouse|squeaked|some cheese",
    ),
    "shelter": _table("name", "a barn", "a cave", "a cottage", "a hollow tree", "a hut", "a tent"),
}  # fmt: skip

VARIABLES = {
    "hero": "child", "friend": "friend", "nature": "nature", "relative": "relative", "daytime": "daytime",
    "toy": "toy", "place": "place", "pet": "animal", "shelter": "shelter",
}  # fmt: skip

LINKS: tuple[tuple[str, str], ...] = ()

# What a question asks for was said at least twice: a model learns to remember what it often has to.
RULES: dict[str, tuple[str, ...]] = {
    "Story": ("{Lost}\nQuestion: {AskLost}", "{Broken}\nQuestion: {AskBroken}",
              "{Hungry}\nQuestion: {AskHungry}", "{Rain}\nQuestion: {AskRain}"),
    "Opening": (
        "Once upon a time there was a {nature} {hero.child} named {hero}.",
        "Once there lived a {nature} {hero.child}, and {hero.his} name was {hero}.",
        "{hero} was a {nature} little {hero.child}.",
    ),
    "Thanks": (
        "\"Thank you, {friend}!\" said {hero}.",
        "{hero} was so glad that {hero.he} gave {friend} a hug.",
        "From that day on {hero} and {friend} were best friends.",
        "{hero} thanked {friend}, and they played with the {toy} until the sun went down.",
    ),

    # A toy is lost, and a friend finds it.
    "Lost": ("{Opening} {HasToy} {TakesToy} {LosesToy} {FriendComes} {FriendFinds} {Thanks}",),
    "HasToy": (
        "{hero.He} had a {toy} and loved to {toy.play} it.",
        "{hero.His} {relative} gave {hero.him} a {toy}.",
        "Most of all {hero.he} liked to {toy.play} {hero.his} {toy}.",
    ),
    "TakesToy": (
        "One {daytime} {hero} took the {toy} to {place}.",
        "On a warm {daytime} {hero} went to {place} to {toy.play} the {toy}.",
    ),
    "LosesToy": (
        "But in {place} the {toy} was gone, and {hero} was very sad.",
        "But {hero} lost the {toy} in {place} and began to cry.",
    ),
    "FriendComes": (
        "{hero.His} friend {friend} came to help {hero.him}.",
        "{hero} asked {hero.his} friend {friend} for help.",
        "A {friend.child} named {friend} heard {hero} and wanted to help.",
    ),
    "FriendFinds": (
        "They looked all over {place}, and at last {friend} found the {toy}.",
        "\"Look, here is your {toy}!\" said {friend}.",
        "Then {friend} saw something in the grass: it was the {toy}!",
    ),
    "AskLost": (
        "Who found the {toy}? Answer: {friend}.",
        "Who lost the {toy}? Answer: {hero}.",
        "What did {hero} lose? Answer: The {toy}.",
        "Where was the {toy}? Answer: In {place}.",
    ),

    # A toy breaks, and a friend brings what it takes to mend it.
    "Broken": ("{Opening} {HasToy} {Breaks} {FriendBrings} {Mends} {Thanks}",),
    "Breaks": (
        "One {daytime} {hero} fell, and the {toy.part} of the {toy} broke.",
        "But one {daytime} {hero} dropped the {toy}, and its {toy.part} broke.",
    ),
    "FriendBrings": (
        "{hero.His} friend {friend} came with {toy.tool}.",
        "\"I have {toy.tool},\" said {hero.his} friend {friend}.",
        "A {friend.child} named {friend} saw it and brought {toy.tool}.",
    ),
    "Mends": (
        "With {toy.tool} {friend} mended the {toy.part}, and the {toy} was as good as new.",
        "{friend} mended the {toy.part}, and soon {hero} could {toy.play} the {toy} again.",
    ),
    "AskBroken": (
        "Who mended the {toy}? Answer: {friend}.",
        "Who had a {toy}? Answer: {hero}.",
        "What broke? Answer: The {toy.part} of the {toy}.",
        "What did {friend} bring? Answer: {toy.Tool}.",
    ),

    # A hungry animal is fed and becomes a friend.
    "Hungry": ("{Opening} {Walk} {MeetsAnimal} {Hunger} {Share} {Joy}",),
    "Walk": (
        "One {daytime} {hero} walked to {place}.",
        "On a cold {daytime} {hero} went to {place} all alone.",
    ),
    "MeetsAnimal": (
        "In {place} {hero} met a little {pet}.",
        "There was a thin {pet} in {place}, and it looked at {hero}.",
    ),
    "Hunger": (
        "\"I am so hungry,\" said the {pet}.",
        "The {pet} {pet.cried} sadly, for it had not eaten all day.",
    ),
    "Share": (
        "{hero} felt sorry for the {pet} and gave it {pet.food}.",
        "So {hero} took {pet.food} and gave it to the {pet}.",
    ),
    "Joy": (
        "The {pet} {pet.cried} with joy and followed {hero} home.",
        "Then {hero} and the {pet} went home together.",
        "\"Thank you, {hero}!\" said the {pet}.",
    ),
    "AskHungry": (
        "Who was hungry? Answer: The {pet}.",
        "Who was kind to the {pet}? Answer: {hero}.",
        "What did the {pet} eat? Answer: {pet.Food}.",
        "Where was the {pet}? Answer: In {place}.",
    ),

    # Rain surprises two friends, who wait until it is over.
    "Rain": ("{Opening} {GoOut} {Starts} {Hide} {Pastime} {Over}",),
    "GoOut": (
        "One {daytime} {hero} and {hero.his} friend {friend} went to {place}.",
        "{hero.He} had a friend named {friend}, and one {daytime} they went to {place}.",
    ),
    "Starts": (
        "Soon it began to rain in {place}.",
        "Then big drops of rain fell on {hero} and {friend}.",
    ),
    "Hide": (
        "\"Let us hide in {shelter},\" said {friend}, and they ran to {shelter}.",
        "They found {shelter}, and in {shelter} it was dry.",
    ),
    "Pastime": (
        "There {hero} told {friend} a story about a {pet}, and {friend} {pet.cried} like a {pet}.",
        "There {friend} sang a song about a {pet}, and {hero} {pet.cried} like a {pet}.",
    ),
    "Over": (
        "At last the sun came out, and {hero} and {friend} ran home.",
        "When the rain was over, {hero} showed {friend} a rainbow.",
        "Then the sky was blue again, and {hero} and {friend} danced in the wet grass.",
    ),
    "AskRain": (
        "Who was with {hero}? Answer: {friend}.",
        "Who was with {friend}? Answer: {hero}.",
        "Which animal was it about? Answer: A {pet}.",
    ),
}  # fmt: skip

GRAMMAR = Grammar(RULES, LEXICON, VARIABLES, LINKS)


def generate(rng: random.Random) -> str:
    """Write one story and a question about it."""
    return GRAMMAR.generate(rng)


def parses(text: str) -> bool:
    """Say whether this is, letter for letter, a story that ``generate`` can write."""
    return GRAMMAR.parses(text)
