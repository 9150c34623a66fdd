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
_GIRLS = ("Anna", "Clara", "Emma", "Ivy", "Lily", "Mira", "Nina", "Rosa", "Ruth", "Zoë")
_BOYS = ("Ben", "Finn", "Jack", "José", "Leo", "Max", "Omar", "Paul", "Sam", "Tom")
LEXICON: dict[str, tuple[Entry, ...]] = {
    "child": _table(
        "name|child|he|his|him",
        *(f"{name}|girl|she|her|her" for name in _GIRLS),
        *(f"{name}|boy|he|his|him" for name in _BOYS),
    ),
    "age": _table("name", "4", "5", "6", "7", "8", "9"),
    "nature": _table("name", "brave", "clever", "happy", "kind", "merry", "quiet"),
    "colour": _table("name", "blue", "brown", "green", "red", "white", "yellow"),
    "size": _table("name", "big", "little", "small", "thin", "young"),
    "relative": _table("name", "aunt", "father", "grandfather", "grandmother", "mother", "uncle"),
    "daytime": _table("name", "afternoon", "evening", "morning"),
    "toy": _table(
        "name|play", "ball|throw", "boat|sail", "book|read", "drum|play", "kite|fly", "wagon|pull"
    ),
    "damage": _table(
        "part|toy|tool",
        "seam|ball|a needle", "sail|boat|some thread", "cover|book|some tape", "skin|drum|some leather",
        "tail|kite|some string", "wheel|wagon|a nail",
    ),
    "place": _table("name", "the beach", "the farm", "the forest", "the garden", "the market", "the park"),
    "spot": _table(
        "name|place",
        "behind a rock|the beach", "in the sand|the beach", "under a towel|the beach",
        "in the hay|the farm", "behind the barn|the farm", "under the cart|the farm",
        "in a hollow tree|the forest", "under the leaves|the forest", "beside the stream|the forest",
        "behind the roses|the garden", "under the apple tree|the garden", "beside the pond|the garden",
        "under a table|the market", "between the baskets|the market", "behind the bread|the market",
        "under a bench|the park", "behind the fountain|the park", "beside the swing|the park",
    ),
    "animal": _table(
        "name|cried", "cat|meowed", "dog|barked", "duck|quacked", "goat|bleated", "hen|clucked",
        "horse|neighed", "mouse|squeaked",
    ),
    "food": _table(
        "name|eater", "some fish|cat", "some milk|cat", "a bone|dog", "a sausage|dog", "some bread|duck",
        "some peas|duck", "some grass|goat", "a cabbage|goat", "some corn|hen", "some seeds|hen",
        "a carrot|horse", "a pear|horse", "some cheese|mouse", "a nut|mouse",
    ),
    "petname": _table("name", "Biscuit", "Button", "Pepper", "Sunny", "Teddy"),
}  # fmt: skip

VARIABLES = {
    "hero": "child", "friend": "child", "age": "age", "nature": "nature", "colour": "colour", "size": "size",
    "relative": "relative", "daytime": "daytime", "toy": "toy", "damage": "damage", "place": "place",
    "spot": "spot", "wrong": "spot", "pet": "animal", "food": "food", "petname": "petname",
}  # fmt: skip

LINKS = (
    ("damage.toy", "toy.name"),
    ("spot.place", "place.name"),
    ("wrong.place", "place.name"),
    ("food.eater", "pet.name"),
)

RULES: dict[str, tuple[str, ...]] = {
    "Story": (
        "{Lost}", "{Lost}\nQuestion: {AskLost}",
        "{Broken}", "{Broken}\nQuestion: {AskBroken}",
        "{Hungry}", "{Hungry}\nQuestion: {AskHungry}",
        "{Rain}", "{Rain}\nQuestion: {AskRain}",
    ),
    "Opening": (
        "Once upon a time there was a {hero.child} named {hero}.",
        "Once upon a time there was a {nature} {hero.child} named {hero}.",
        "{hero} was a {nature} little {hero.child}.",
        "{hero} was {age} years old.",
        "There once lived a {hero.child} named {hero}, who was {age} years old.",
    ),
    "AskAge": ("How old was {hero}? Answer: {=age}.",),

    # A toy is lost, and a friend or an animal finds it.
    "Lost": ("{Opening} {HasToy} {TakesToy} {LosesToy} {FriendFinds}",
             "{Opening} {HasToy} {TakesToy} {LosesToy} {AnimalFinds}"),
    "HasToy": (
        "{hero.He} had a {colour} {toy} and loved to {toy.play} it.",
        "{hero.His} {relative} gave {hero.him} a {colour} {toy}.",
        "Most of all {hero.he} liked to {toy.play} {hero.his} {colour} {toy}.",
    ),
    "TakesToy": (
        "One {daytime} {hero} took the {toy} to {place}.",
        "On a warm {daytime} {hero.he} went to {place} to {toy.play} the {toy}.",
        "One {daytime} {hero} carried it to {place}.",
    ),
    "LosesToy": (
        "But then the {toy} was gone, and {hero} was very sad.",
        "{hero.He} put it down for a moment, and soon it was gone.",
        "There {hero.he} lost the {toy} and began to cry.",
    ),
    "FriendFinds": ("{FriendComes} {FriendLooks} {Thanks}",
                    "{FriendComes} {LookInVain} {FriendLooks} {Thanks}"),
    "FriendComes": (
        "{hero.His} friend {friend} came to help {hero.him}.",
        "{hero} asked {hero.his} friend {friend} for help.",
        "A {friend.child} named {friend} heard {hero.him} and wanted to help.",
    ),
    "LookInVain": (
        "They looked {wrong}, but it was not there.",
        "First they looked {wrong}, but found nothing.",
    ),
    "FriendLooks": (
        "At last {friend} found the {toy} {spot}.",
        "Then {friend} saw something {colour} {spot}: it was the {toy}!",
        "\"Look, it is {spot}!\" said {friend}.",
    ),
    "Thanks": (
        "\"Thank you, {friend}!\" said {hero}.",
        "{hero} was so glad that {hero.he} gave {friend} a hug.",
        "From that day on {hero} and {friend} were best friends.",
        "{hero} thanked {friend.him}, and they played together until the sun went down.",
    ),
    "AnimalFinds": ("{AnimalComes} {AnimalLooks} {Reward}",),
    "AnimalComes": (
        "A {size} {pet} saw {hero.him} and wanted to help.",
        "Then {hero.he} met a {size} {pet} and told it what was wrong.",
    ),
    "AnimalLooks": (
        "The {pet} looked {spot} and {pet.cried}, for there was the {toy}.",
        "Soon the {pet} found the {colour} {toy} {spot}.",
    ),
    "Reward": (
        "{hero} laughed and gave the {pet} {food}.",
        "\"Good {pet}!\" said {hero} and gave it {food}.",
    ),
    "AskLost": (
        "Who found the {colour} {toy}? Answer: {=friend}.",
        "Who found the {colour} {toy}? Answer: The {=pet}.",
        "Where was the {toy}? Answer: {spot.Name}.",
        "What did {hero} lose? Answer: A {colour} {toy}.",
        "{AskAge}",
    ),

    # A toy breaks, and a friend brings what it takes to mend it.
    "Broken": ("{Opening} {HasToy} {Breaks} {FriendBrings} {Mends} {Thanks}",
               "{Opening} {HasToy} {Breaks} {Despair} {FriendBrings} {Mends} {Thanks}"),
    "Breaks": (
        "One {daytime} {hero} fell, and the {damage.part} of the {toy} broke.",
        "But one {daytime} {hero.he} dropped it, and its {damage.part} broke.",
    ),
    "Despair": ("{hero} did not know what to do.", "{hero} sat down and cried."),
    "FriendBrings": (
        "{hero.His} friend {friend} came with {damage.tool}.",
        "Then {hero.his} friend {friend} said: \"I have {damage.tool}.\"",
        "A {friend.child} named {friend} saw it and brought {damage.tool}.",
    ),
    "Mends": (
        "With {damage.tool} they mended the {damage.part}, and the {toy} was as good as new.",
        "{friend.He} mended the {damage.part}, and soon {hero} could {toy.play} the {toy} again.",
    ),
    "AskBroken": (
        "What broke? Answer: The {damage.part} of the {toy}.",
        "Who helped {hero}? Answer: {friend}.",
        "What did {friend} bring? Answer: {damage.Tool}.",
        "{AskAge}",
    ),

    # A hungry animal is fed and becomes a friend.
    "Hungry": ("{Opening} {Walk} {MeetAnimal} {Hunger} {Share} {Stays}",),
    "Walk": (
        "One {daytime} {hero} walked to {place} with {food} in {hero.his} bag.",
        "On a cold {daytime} {hero.he} went to {place} and took {food} along.",
    ),
    "MeetAnimal": (
        "A {size} {pet} was sitting {spot}.",
        "There {hero.he} saw a {size} {pet} {spot}.",
    ),
    "Hunger": (
        "\"I am so hungry,\" said the {pet}.",
        "The poor {pet} was hungry.",
        "It {pet.cried} sadly, for it had not eaten all day.",
    ),
    "Share": (
        "{hero} felt sorry for the {pet} and gave it {food}.",
        "So {hero} opened {hero.his} bag and gave {food} to the {pet}.",
    ),
    "Stays": (
        "The {pet} was happy, and {hero} named it {petname}.",
        "The {pet} {pet.cried} with joy and followed {hero.him} home.",
        "{hero} took the {pet} home and named it {petname}.",
    ),
    "AskHungry": (
        "What did the {pet} eat? Answer: {food.Name}.",
        "Who was hungry? Answer: The {size} {pet}.",
        "What was the name of the {pet}? Answer: {=petname}.",
        "Where did {hero} go? Answer: To {place}.",
        "{AskAge}",
    ),

    # Rain surprises two friends, who wait until it is over.
    "Rain": ("{Opening} {GoOut} {Starts} {Shelter} {Pastime} {Over}",),
    "GoOut": (
        "One {daytime} {hero} and {hero.his} friend {friend} went to {place}.",
        "{hero.He} had a friend named {friend}, and one {daytime} they went to {place} together.",
    ),
    "Starts": ("Soon it began to rain.", "Then big drops of rain fell on {hero} and {friend}."),
    "Shelter": (
        "\"Let us hide {spot},\" said {friend}.",
        "{friend} took {hero} by the hand, and they hid {spot}.",
        "They were all wet when {hero} found a dry place {spot}.",
    ),
    "Pastime": (
        "While they waited, {hero} told {friend} a story about a {colour} {pet}.",
        "There {friend} sang a song about a {size} {pet}, and {hero} sang along.",
        "{hero} had {food} in {hero.his} bag and shared it with {friend}.",
    ),
    "Over": (
        "At last the sun came out, and {hero} and {friend} ran home.",
        "When the rain was over, {hero} saw a rainbow and showed it to {friend}.",
        "Then the sky was blue again, and {friend} and {hero} danced in the wet grass.",
    ),
    "AskRain": (
        "Who was with {hero}? Answer: {friend}.",
        "Where did they hide? Answer: {spot.Name}.",
        "What was the story about? Answer: A {=colour} {=pet}.",
        "What was the song about? Answer: A {=size} {=pet}.",
        "{AskAge}",
    ),
}  # fmt: skip

GRAMMAR = Grammar(RULES, LEXICON, VARIABLES, LINKS)


def generate(rng: random.Random) -> str:
    """Write one story, with or without a question at its end."""
    return GRAMMAR.generate(rng)


def parses(text: str) -> bool:
    """Say whether this is, letter for letter, a story that ``generate`` can write."""
    return GRAMMAR.parses(text)
