"""Key content of a text: RAKE, with exact character spans.

RAKE (rapid automatic keyword extraction) cuts a text at stop words and punctuation into candidate phrases, scores a word by
degree / frequency over the candidates, and a phrase by the sum over its words. What the method leaves open is decided so:

- Letter case does not matter. Every occurrence of a phrase is a phrase of its own, since each can be removed.
- Punctuation, symbols and line breaks end a phrase; an apostrophe, hyphen or ampersand between letters does not.
- A number is content and counts as a word, with its currency sign, decimals, time or percent sign ("$1,200.50", "7:30", "40%").
- The number of a list item ("2." or "3)" at the start of a line) is layout, not content.
- A script without spaces between words gives one long word between two punctuation marks.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple


class Phrase(NamedTuple):
    """A stretch of a text: ``text[start:end]`` of the source is exactly ``text``.

    Attributes:
        start, end: character offsets in the source.
        text: the characters themselves.
        score: the RAKE score; 0 for a stop word.
        size: how many words it has.
    """

    start: int
    end: int
    text: str
    score: float
    size: int


STOPWORDS: frozenset[str] = frozenset(
    line
    for line in files(__package__).joinpath("stopwords.txt").read_text(encoding="utf-8").splitlines()
    if line and line[0] != "#"
)

# Python's \w lacks combining marks; without them words of Arabic, Hebrew, Indic and Thai script would be cut at every vowel sign.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
)
_MARKS += "\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0900-\u0963\u0971-\u0df3\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc"
_MARKS += "\u0ec8-\u0ece\u1ab0-\u1aff\u1dc0-\u1dff\u200c\u200d\u20d0-\u20ff\ufe20-\ufe2f"
_LETTERS = rf"[\w{_MARKS}]+"
_TOKEN = re.compile(
    r"^[ \t]*\d{1,3}[.)](?=[ \t]+\S)"  # the number of a list item: matched, and skipped because it is outside the group
    rf"|((?:[$€£¥](?=\d))?[^\W_](?:{_LETTERS})?(?:(?:['’\-&]|(?<=\d)[.,:/](?=\d)){_LETTERS})*(?:(?<=\d)%)?)",
    re.MULTILINE,
)
# What may stand between two words of one phrase.
SPACES = " \t\u00a0\u2009\u202f\u3000"


def words(text: str) -> list[Phrase]:
    """Return every word of a text in order, stop words included, each with its own RAKE score."""
    return scan(text)[0]


def phrases(text: str) -> list[Phrase]:
    """Return every candidate phrase of a text in order, each with its RAKE score."""
    return scan(text)[1]


def scan(text: str) -> tuple[list[Phrase], list[Phrase]]:
    """Return (``words``, ``phrases``) of a text in one pass; the lists are the caller's own."""
    found: list[tuple[int, int, str, str]] = []  # start, end, characters, normal form
    groups: list[tuple[int, int]] = []  # index of the first word of a candidate, index after its last
    first, previous_end = -1, 0
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        index = len(found)
        if match.lastindex is None:  # list number
            if first >= 0:
                groups.append((first, index))
            first, previous_end = -1, end
            continue
        raw = match[1]
        normal = raw.casefold().replace("’", "'")
        gap = text[previous_end:start]
        if first >= 0 and gap != " " and gap.strip(SPACES):
            groups.append((first, index))
            first = -1
        if normal in STOPWORDS:
            if first >= 0:
                groups.append((first, index))
            first = -1
        elif first < 0:
            first = index
        found.append((start, end, raw, normal))
        previous_end = end
    if first >= 0:
        groups.append((first, len(found)))

    frequency: dict[str, int] = {}
    degree: dict[str, int] = {}
    for begin, stop in groups:
        for word in found[begin:stop]:
            key = word[3]
            frequency[key] = frequency.get(key, 0) + 1
            degree[key] = degree.get(key, 0) + stop - begin
    score = {key: degree[key] / count for key, count in frequency.items()}
    single = [Phrase(start, end, raw, score.get(normal, 0.0), 1) for start, end, raw, normal in found]
    joined = []
    for begin, stop in groups:
        start, end = found[begin][0], found[stop - 1][1]
        joined.append(Phrase(start, end, text[start:end], sum(word.score for word in single[begin:stop]), stop - begin))
    return single, joined
