"""Stop strings never leak their first half, however the text arrives."""

from __future__ import annotations

import random

import pytest

from llama_runtime.stopping import StopMatcher


def _feed(stops, pieces):
    matcher = StopMatcher(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return shown, matcher


def test_text_without_stop_strings_passes_at_once():
    shown, matcher = _feed((), ["ab", "c"])
    assert shown == ["ab", "c"] and matcher.flush() == "" and not matcher.stopped


def test_a_possible_start_is_held_back_until_it_is_clear():
    shown, matcher = _feed(("\nUser:",), ["Hello\n", "Us", "ers\n", "User", ":", " more"])
    assert shown == ["Hello", "", "\nUsers", "", "", ""]
    assert matcher.stopped and matcher.flush() == ""


def test_the_end_releases_what_did_not_become_a_stop_string():
    shown, matcher = _feed(("END",), ["theE", "N"])
    assert shown == ["the", ""] and matcher.flush() == "EN" and not matcher.stopped


def test_the_stop_string_that_is_complete_first_wins():
    for pieces in (["xabcd"], list("xabcd")):
        shown, _ = _feed(("abcd", "bc"), pieces)
        assert "".join(shown) == "xa"


def test_of_two_that_end_together_the_longer_wins():
    for pieces in (["xabc"], list("xabc")):
        shown, _ = _feed(("bc", "abc"), pieces)
        assert "".join(shown) == "x"


@pytest.mark.parametrize("seed", range(20))
def test_any_cutting_gives_the_same_text_and_nothing_leaks(seed):
    chooser = random.Random(seed)
    for _ in range(200):
        stops = [
            "".join(chooser.choices("ab", k=chooser.randint(1, 4))) for _ in range(chooser.randint(1, 3))
        ]
        text = "".join(chooser.choices("abc", k=12))
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        expected = text[: min(ends)[1]] if ends else text
        cuts = sorted(chooser.sample(range(1, 12), 5))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 12], strict=True)]
        matcher, shown = StopMatcher(stops), ""
        for piece in pieces:
            shown += matcher.push(piece)
            assert expected.startswith(shown)
        assert shown + matcher.flush() == expected
        assert matcher.stopped == bool(ends)
