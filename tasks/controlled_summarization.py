"""A summarization world whose true reward is known: a day's events, of which some matter more.

The importance of an event can be read from its kind: a flood matters more than a storm, and a storm more than a breeze. Two
tasks share the prompts and the distribution of the answers; which events an answer covers and how wordily it does so are drawn
independently of each other.

``controlled_summarization``
    prefers importance covered within a budget of words. Can show: whether a method makes a policy pick what matters and say it
    in few words; preference lies in key content (kinds and places), which is what SPO assumes, so it is SPO's best case.
``controlled_summarization_brevity``
    prefers the shorter answer and is blind to content. Can show: whether SPO costs anything, or still "helps", where its
    assumption fails. Removing key phrases also shortens an answer, so degree and preference are related here through length
    alone, in the direction opposite to SPO's assumption; the control ``length_only`` belongs beside any claim about it.

Neither can show anything about paraphrase or faithfulness of real summaries: an event counts where its
kind is named, and a kind has one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, ClassVar

from ._world import ControlledTask, listed, sentence_case, words

# What can happen in each domain and where, by importance: what covering it is worth.
EVENTS: Mapping[str, Mapping[int, Mapping[str, str]]] = {
    "weather": {
        4: {"flood": "mill", "tornado": "farm"},
        2: {"storm": "harbour", "drought": "orchard"},
        1: {"breeze": "beach", "drizzle": "park"},
    },
    "crime": {
        4: {"murder": "hotel", "kidnapping": "school"},
        2: {"robbery": "bank", "fraud": "insurer"},
        1: {"quarrel": "tavern", "prank": "college"},
    },
    "business": {
        4: {"bankruptcy": "shipyard", "blaze": "refinery"},
        2: {"merger": "brewery", "recall": "dairy"},
        1: {"sale": "bazaar", "banquet": "guildhall"},
    },
}
WORTH: Mapping[str, int] = {kind: worth for levels in EVENTS.values() for worth, kinds in levels.items() for kind in kinds}
PLACES: Mapping[str, str] = {
    kind: place for levels in EVENTS.values() for kinds in levels.values() for kind, place in kinds.items()
}
DRAWN = 5  # events a day
BUDGET = 16  # words; three events said briefly ("a flood at the mill") and the "and" before the last

ASKS = (
    "Sum up the day in sixteen words: {}.",
    "Tell me in sixteen words what happened: {}.",
    "Make this short, in sixteen words: {}.",
)
BRIEF = "a {} at the {}"
WORDY = ("there was a {} over at the {}", "there has also been a {} at the {}", "it was then that we had a {} at the {}")
LEADS = ("Here is what we have for you:", "So this is all there is:")
SHORTEST, LONGEST = 5, 35  # words between which the reward of brevity falls from 1 to 0

_JUDGE = """Two summaries of the same events are shown. {criterion}

Events:
{{prompt}}

Summary A:
{{a}}

Summary B:
{{b}}
"""
_SCALE = "; ".join(
    f"{worth} points: {listed([kind for kind, value in WORTH.items() if value == worth])}"
    for worth in sorted(set(WORTH.values()), reverse=True)
)


class _Summarization(ControlledTask):
    world: ClassVar[str] = "summarization"

    def question(self, rng: Random) -> tuple[str, str, dict[str, Any]]:
        """Draw five events; the domain is that of the first of those that matter most."""
        kinds = rng.sample(list(WORTH), DRAWN)
        gravest = max(kinds, key=WORTH.__getitem__)
        domain = next(name for name, levels in EVENTS.items() if any(gravest in level for level in levels.values()))
        told = ", ".join(BRIEF.format(kind, PLACES[kind]) for kind in kinds)
        return rng.choice(ASKS).format(told), domain, {"events": kinds}

    def answer(self, meta: Mapping[str, Any], rng: Random) -> str:
        """Draw an answer: which events (with or without an eye for importance), one perhaps invented, and how wordily."""
        kinds = list(meta["events"])
        rng.shuffle(kinds)
        if rng.random() < 0.35:
            kinds.sort(key=lambda kind: -WORTH[kind])
        covered = kinds[: rng.choice((1, 2, 3, 3))]
        if rng.random() < 0.1:
            covered[0] = rng.choice([kind for kind in WORTH if kind not in kinds])
        forms = [rng.choice(WORDY) if rng.random() < 0.3 else BRIEF for _ in covered]
        body = listed([form.format(kind, PLACES[kind]) for form, kind in zip(forms, covered)])
        lead = f"{rng.choice(LEADS)} " if rng.random() < 0.25 else ""
        return f"{lead}{body if lead else sentence_case(body)}."


class ControlledSummarization(_Summarization):
    """Preference for content: importance covered within the budget of words."""

    name: ClassVar[str] = "controlled_summarization"
    summary: ClassVar[str] = "sum up a day's events; preference depends on the importance covered within a budget of words"
    judge_prompt: ClassVar[str] = _JUDGE.format(
        criterion=f"Read only the first {BUDGET} words of each. The better summary covers events worth more points there; an "
        f"event that did not happen takes its points away instead. Style does not matter. Worth by kind: {_SCALE}."
    )

    def reward(self, meta: Mapping[str, Any], answer: str) -> float:
        """Return (worth of the events stated - worth of invented ones) / the most three of them are worth, cut to [0, 1].

        Only the first 16 words count. An event is stated where its kind is named; it is invented if the prompt does not have it.
        """
        given = set(meta["events"])
        stated = set(words(answer)[:BUDGET]) & WORTH.keys()
        best = sum(sorted((WORTH[kind] for kind in given), reverse=True)[:3])
        gained = sum(WORTH[kind] for kind in stated & given) - sum(WORTH[kind] for kind in stated - given)
        return min(1.0, max(0.0, gained / best))


class ControlledSummarizationBrevity(_Summarization):
    """The twin: preference for the shorter answer, whatever it covers."""

    name: ClassVar[str] = "controlled_summarization_brevity"
    summary: ClassVar[str] = "the same events and answers; preference depends on brevity, not on what is covered"
    judge_prompt: ClassVar[str] = _JUDGE.format(
        criterion="The better summary is the one with fewer words. What it covers, and whether that is true, does not matter."
    )

    def reward(self, meta: Mapping[str, Any], answer: str) -> float:
        """Return 1 up to 5 words, 0 from 35 words on, linear between; an answer without words has 0."""
        length = len(words(answer))
        return min(1.0, max(0.0, (LONGEST - length) / (LONGEST - SHORTEST))) if length else 0.0


def texts() -> list[str]:
    """Return what this world's prompts and answers are put together from, with every word in each case it is used in."""
    forms = (BRIEF, *WORDY)
    return [*PLACES, *PLACES.values(), *ASKS, *LEADS, *forms, *[sentence_case(form) for form in forms], listed(["a", "a", "a"])]
