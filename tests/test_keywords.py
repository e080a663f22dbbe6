"""RAKE by hand, exact spans, and the degraded copies made from them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_bench.spo.degrade import MASK, degraded_copies, degree_labels
from spo_bench.spo.keywords import STOPWORDS, phrases, scan, words
from spo_bench.spo.settings import SpoSettings

settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

DEFAULT = SpoSettings()
# Text with the signs that make trouble: punctuation, line breaks, marks, digits, stop words.
ALPHABET = st.sampled_from([*"abc  \n\t.,;:!?()'’-&%$0123é\u0301_🌱", "\u00a0", "\r\n", "the ", "and ", "red fox ", "猫", "नमस्ते"])
TEXTS = st.lists(ALPHABET, max_size=60).map("".join) | st.text(max_size=80)
# Well-spaced sentences of stop words and content words.
WORD = st.sampled_from(["the", "of", "is", "a", "red", "fox", "green", "river", "old", "1889", "stone"])
SENTENCES = st.lists(
    st.lists(WORD, min_size=1, max_size=9).flatmap(
        lambda line: st.sampled_from([".", "?", "!"]).map(lambda end: " ".join(line) + end)
    ),
    min_size=1,
    max_size=5,
).flatmap(lambda lines: st.sampled_from([" ", "\n", "\n\n"]).map(lambda gap: gap.join(lines)))


def texts(text: str) -> list[str]:
    return [phrase.text for phrase in phrases(text)]


def test_scores_by_hand():
    """Two phrases share words.

    "The deep red fox and a red fox of the river": candidates (deep red fox), (red fox), (river).
    Frequencies: deep 1, red 2, fox 2, river 1. Degrees: deep 3, red 3 + 2 = 5, fox 5, river 1.
    Word scores: deep 3, red 2.5, fox 2.5, river 1. Phrases: 3 + 2.5 + 2.5 = 8; 5; 1.
    """
    found = phrases("The deep red fox and a red fox of the river")
    assert [(phrase.text, phrase.score, phrase.size) for phrase in found] == [
        ("deep red fox", 8.0, 3),
        ("red fox", 5.0, 2),
        ("river", 1.0, 1),
    ]
    scores = {word.text: word.score for word in words("The deep red fox and a red fox of the river")}
    assert scores == {"The": 0, "deep": 3, "red": 2.5, "fox": 2.5, "and": 0, "a": 0, "of": 0, "the": 0, "river": 1}


def test_a_word_twice_in_one_phrase():
    """One candidate "tea green tea": tea occurs twice, degree 3 + 3 = 6, score 6 / 2 = 3; green 3; the phrase 3 + 3 + 3 = 9."""
    assert [(phrase.text, phrase.score) for phrase in phrases("tea green tea")] == [("tea green tea", 9.0)]


def test_case_does_not_matter():
    """ "Fox" and "FOX" are one word: frequency 2, degree 1 + 1 = 2, score 1 each."""
    assert [phrase.score for phrase in phrases("Fox. FOX")] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("the of and", []),
        ("... !!", []),
        ("red fox, green river", ["red fox", "green river"]),
        ("red fox\ngreen river", ["red fox", "green river"]),
        ("red fox\r\ngreen river", ["red fox", "green river"]),
        ("red  fox\u00a0river", ["red  fox\u00a0river"]),
        ("I don’t see Paris's well-known R&D lab", ["Paris's well-known R&D lab"]),
        ("I don't know", []),
        ("it costs $1,200.50 or 40% of 3.5 million", ["costs $1,200.50", "40%", "3.5 million"]),
        ("train at 7:30, gate 12", ["train", "7:30", "gate 12"]),
        ("1. Bread\n 2) Milk\n1999 wine", ["Bread", "Milk", "1999 wine"]),
        ("42.", ["42"]),
        ("fill ____ blank", ["fill", "blank"]),
        ("snake_case name", ["snake_case name"]),
        ("crème brûlée is cre\u0300me", ["crème brûlée", "cre\u0300me"]),
        ("नमस्ते दुनिया।", ["नमस्ते दुनिया"]),
        ("猫が好き。犬も", ["猫が好き", "犬も"]),
        ("green🌱tea", ["green", "tea"]),
    ],
)
def test_candidates(text: str, expected: list[str]):
    assert texts(text) == expected


def test_stop_words_are_plain_words():
    assert 300 <= len(STOPWORDS) <= 600
    assert all(word == word.strip().casefold() and " " not in word for word in STOPWORDS)
    assert {"the", "don't", "because", "i'm"} <= STOPWORDS
    assert not {"not able", "fox", ""} & STOPWORDS


@given(TEXTS)
def test_spans_are_exact_and_in_order(text: str):
    every, found = scan(text)
    for kind in (every, found):
        assert all(text[unit.start : unit.end] == unit.text and unit.text.strip() for unit in kind)
        assert all(one.end <= other.start for one, other in pairwise(kind))
    assert sum(phrase.size for phrase in found) == sum(word.score > 0 for word in every)
    assert sum(phrase.score for phrase in found) == pytest.approx(sum(word.score for word in every))


def test_copies_by_hand():
    """Phrases by score: "deep red fox" 8, "red fox" 5, "river" 1; three units, four degrees: 0, 1, 2, 3 of them are gone."""
    assert degraded_copies("The deep red fox and a red fox of the river.", DEFAULT, 0) == [
        "The deep red fox and a red fox of the river.",
        "The and a red fox of the river.",
        "The and a of the river.",
        "The and a of the.",
    ]


@pytest.mark.parametrize(
    ("settings", "last_but_one"),
    [
        ({"order": "score_asc"}, "The deep red fox and a of the."),
        ({"order": "position"}, "The and a of the river."),
        ({"op": "mask"}, "The ___ and a ___ of the river."),
        # Words by score: deep 3, red, red, fox, fox 2.5 (in order red fox red fox), river 1; round(2/3 * 6) = 4 of 6.
        ({"unit": "word"}, "The and a fox of the river."),
        ({"fractions": [0, 0.1, 0.34, 1]}, "The and a red fox of the river."),
    ],
)
def test_choices_by_hand(settings: dict, last_but_one: str):
    assert degraded_copies("The deep red fox and a red fox of the river.", SpoSettings(**settings), 0)[2] == last_but_one


def test_few_units_give_no_copy_twice():
    """One unit can be there or not: removed is degree 3 (all gone), and degrees 1 and 2 cannot be shown."""
    assert degraded_copies("It is the fox.", DEFAULT, 0) == ["It is the fox.", None, None, "It is the."]


def test_two_units_skip_the_degree_that_fits_worse():
    """Two units: round(2/3) = 1, round(4/3) = 1, 2. Half removed is as near to 1/3 as to 2/3: the higher degree has it."""
    assert degraded_copies("a fox and a river.", DEFAULT, 0) == ["a fox and a river.", None, "a and a river.", "a and a."]


@pytest.mark.parametrize("text", ["", "   ", "It is the.", "Fox"])
def test_nothing_to_remove_or_nothing_left(text: str):
    assert degraded_copies(text, DEFAULT, 0) == [text, None, None, None]


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("Fox sat in it.", "in it."),
        ("It is (the red fox) or (red fox).", "It is (the) or ()."),
        ("the fox, the river; the stone", "the, the; the"),
        ("It is:\n- fox\n- the river\n\nStone\n\nIt is.", "It is:\n-\n- the\n\nIt is."),
        ("Stone\nit is", "it is"),
        ("  it\n    fox is", "  it\n    is"),
        ("it is fox  ", "it is"),
        ("It is “fox” and red fox river.", "It is “” and."),
    ],
)
def test_deletion_is_tidy(text: str, bare: str):
    assert degraded_copies(text, DEFAULT, 0)[-1] == bare


@given(SENTENCES, st.sampled_from(["phrase", "word"]), st.sampled_from([None, "random_removal"]))
def test_deletion_leaves_no_stray_spaces(text: str, unit: str, control: str | None):
    settings = SpoSettings(unit=unit, control=control)
    for copy in degraded_copies(text, settings, 1)[1:]:
        if copy is not None:
            assert "  " not in copy
            assert not re.search(r"[^\S\n][.,;:!?]", copy)
            assert not re.search(r"[ \t]+(\n|$)|(^|\n)[ \t]", copy)


SETTINGS = st.builds(
    SpoSettings,
    degrees=st.integers(2, 7),
    order=st.sampled_from(["score_desc", "score_asc", "position", "random"]),
    unit=st.sampled_from(["phrase", "word"]),
    op=st.sampled_from(["delete", "mask"]),
    control=st.sampled_from([None, "random_removal"]),
)


def is_subsequence(short: list[str], long: list[str]) -> bool:
    rest = iter(long)
    return all(word in rest for word in short)


@given(TEXTS | SENTENCES, SETTINGS, st.integers(0, 3))
def test_removal_is_nested(text: str, settings: SpoSettings, seed: int):
    """Each copy's words are a subsequence of the words of the copy before it, and strictly fewer."""
    copies = degraded_copies(text, settings, seed)
    assert len(copies) == settings.degrees
    assert copies[0] == text
    left = [re.findall(r"[^\W_]+", copy) for copy in copies if copy is not None]
    for before, after in pairwise(left):
        assert is_subsequence(after, before)
        assert len(after) < len(before)


@given(SENTENCES, st.sampled_from(["phrase", "word"]), st.integers(2, 6))
def test_random_removal_takes_as_many_words(text: str, unit: str, degrees: int):
    key = degraded_copies(text, SpoSettings(unit=unit, degrees=degrees), 0)
    drawn = degraded_copies(text, SpoSettings(unit=unit, degrees=degrees, control="random_removal"), 0)
    for one, other in zip(key, drawn):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert len(words(one)) == len(words(other))


def test_random_removal_takes_stop_words_too():
    text = " ".join(["the fox is of a river and"] * 20)
    copy = degraded_copies(text, SpoSettings(control="random_removal"), 0)[3]
    assert 0 < copy.split().count("the") < 20
    assert 0 < copy.split().count("fox") < 20


@pytest.mark.parametrize("settings", [{"order": "random"}, {"control": "random_removal"}])
def test_random_choices_depend_on_seed_and_text_only(settings: dict):
    text = "red fox, green river, old stone, deep lake, tall tree, small bird"
    chosen = SpoSettings(**settings)
    assert degraded_copies(text, chosen, 0) == degraded_copies(text, chosen, 0)
    assert len({tuple(degraded_copies(text, chosen, seed)) for seed in range(8)}) > 1
    code = (
        "from spo_bench.spo.degrade import *; from spo_bench.spo.settings import *;"
        f"print(degraded_copies({text!r}, SpoSettings(**{settings!r}), 5))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert printed.strip() == repr(degraded_copies(text, chosen, 5))


def test_labels():
    assert degree_labels("a fox", DEFAULT, 0) == [0, 1, 2, 3]
    shuffled = SpoSettings(control="shuffled_degrees")
    drawn = [degree_labels(f"fox {i}", shuffled, 0) for i in range(400)]
    assert drawn == [degree_labels(f"fox {i}", shuffled, 0) for i in range(400)]
    assert all(sorted(labels) == [0, 1, 2, 3] for labels in drawn)
    assert drawn != [degree_labels(f"fox {i}", shuffled, 1) for i in range(400)]
    # Labels are uniform: each is expected 100 times, with standard deviation sqrt(400 * 1/4 * 3/4) = 8.7; 5 of them are 43.
    for k in range(4):
        assert all(57 < sum(labels[k] == label for labels in drawn) < 143 for label in range(4))


def test_mask_mark_is_visible():
    assert degraded_copies("the fox.", SpoSettings(op="mask"), 0)[-1] == f"the {MASK}."
