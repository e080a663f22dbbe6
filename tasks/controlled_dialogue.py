"""A dialogue world whose true reward is known: questions over a small knowledge base.

Two tasks share its prompts and the distribution of its answers. An answer's content (which facts, right or wrong, with filler
or without) and its tone (courteous, plain or curt) are drawn independently of each other.

``controlled_dialogue``
    prefers what answers the question. Can show: whether a method makes a policy state more of the asked facts, correctly and
    without filler, that is, whether it helps where preference lies in key content. That is what SPO assumes, so a gain here is
    SPO's best case, not evidence about human preferences.
``controlled_dialogue_tone``
    prefers the courteous tone and is blind to content. Its marks of tone are function words only, so removing key phrases
    leaves the reward as it is: a learned sense of degraded content carries no information about this preference. Can show:
    whether SPO costs anything, or still "helps", where its assumption fails.

Neither can show anything about long or open answers, about noisy labels (the order of each pair is right by construction), or
about large models: values are read word by word, a negated fact counts as stated, and the policy knows no other text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from ._world import ControlledTask, listed, sentence_case, sentences, words


@dataclass(frozen=True)
class Attribute:
    """A kind of fact: how it is asked, how it is stated ({} takes the value), and its value for each subject of the domain."""

    question: str
    statement: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """Subjects and what is known of them. Each value is one word, found nowhere else in this world."""

    subjects: tuple[str, ...]
    attributes: Mapping[str, Attribute]

    def fact(self, subject: str, attribute: str) -> str:
        """Return the value of an attribute of a subject."""
        return self.attributes[attribute].values[self.subjects.index(subject)]


# The facts are those of this world; some hold in ours too.
DOMAINS: Mapping[str, Domain] = {
    "plants": Domain(
        ("lavender", "heather", "primrose", "foxglove", "saffron", "clover"),
        {
            "place": Attribute("where does it grow", "grows in {}", ("hills", "moors", "woods", "ravines", "fields", "pastures")),
            "month": Attribute("when does it bloom", "blooms in {}", ("july", "august", "march", "june", "october", "april")),
            "colour": Attribute(
                "which colour is it", "has {} flowers", ("purple", "pink", "yellow", "crimson", "violet", "white")
            ),
            "use": Attribute("what is it used for", "is used for {}", ("soap", "brooms", "tea", "medicine", "dye", "fodder")),
        },
    ),
    "animals": Domain(
        ("otter", "badger", "heron", "hare", "owl", "toad"),
        {
            "home": Attribute("where does it live", "lives in {}", ("rivers", "burrows", "reeds", "hollows", "barns", "ponds")),
            "food": Attribute("what does it eat", "eats {}", ("crabs", "worms", "fish", "grass", "mice", "flies")),
            "hour": Attribute("when is it awake", "is awake at {}", ("dawn", "midnight", "noon", "dusk", "night", "sunset")),
            "call": Attribute("how does it call", "calls with a {}", ("whistle", "growl", "croak", "squeal", "hoot", "trill")),
        },
    ),
    "tools": Domain(
        ("lantern", "compass", "anvil", "loom", "kettle", "saddle"),
        {
            "material": Attribute(
                "what is it made of", "is made of {}", ("glass", "brass", "iron", "timber", "copper", "leather")
            ),
            "owner": Attribute("who uses it", "is used by {}", ("miners", "sailors", "smiths", "weavers", "cooks", "riders")),
            "origin": Attribute(
                "which city is it from", "comes from {}", ("venice", "lisbon", "toledo", "ghent", "london", "prague")
            ),
            "price": Attribute("what does it cost", "costs {} coins", ("nine", "thirty", "sixty", "eighty", "twelve", "forty")),
        },
    ),
}

ASKS = (
    "Tell me about the {}:",
    "I have a question about the {}:",
    "Can you help me with the {}:",
    "I want to learn about the {}:",
    "Here is a question on the {}:",
    "We talked about the {}:",
)
FILLERS = (
    "There is a long story behind this, as many people will tell.",
    "Many books have been written on the topic over the years.",
    "It is one of the things that people like to talk about.",
    "The whole matter could fill a long evening with friends.",
)
# Every word of these is a function word, and no mark has more than LONGEST_MARK words: see the module's docstring.
COURTEOUS = (("If I may,", "Here you are:"), ("I am here for you.", "Do have more of these."))
CURT = (("Not this again.", "Why me?"), ("Now be off.", "That is all."))
LONGEST_MARK = 5

WRONG_COST = 0.5
FILLER_COST = 0.15

_VALUES = {value for domain in DOMAINS.values() for attribute in domain.attributes.values() for value in attribute.values}


def _facts() -> str:
    lines = []
    for domain in DOMAINS.values():
        for subject in domain.subjects:
            stated = [a.statement.format(domain.fact(subject, name)) for name, a in domain.attributes.items()]
            lines.append(f"The {subject} {listed(stated)}.")
    return "\n".join(lines)


def _quoted(marks: Sequence[Sequence[str]]) -> str:
    return ", ".join(f'"{mark}"' for place in marks for mark in place)


_JUDGE = """Two answers to the same question are shown. {criterion}

Question:
{{prompt}}

Answer A:
{{a}}

Answer B:
{{b}}
"""


class _Dialogue(ControlledTask):
    world: ClassVar[str] = "dialogue"

    def question(self, rng: Random) -> tuple[str, str, dict[str, Any]]:
        """Draw a subject, two or three of its four attributes, and a wording."""
        name = rng.choice(list(DOMAINS))
        domain = DOMAINS[name]
        subject = rng.choice(domain.subjects)
        asked = rng.sample(list(domain.attributes), rng.choice((2, 3)))
        prompt = f"{rng.choice(ASKS).format(subject)} {listed([domain.attributes[a].question for a in asked])}?"
        return prompt, name, {"domain": name, "subject": subject, "asked": asked}

    def answer(self, meta: Mapping[str, Any], rng: Random) -> str:
        """Draw an answer: each asked fact is stated, left out or wrong, then perhaps a fact too many, filler, and a tone."""
        domain = DOMAINS[meta["domain"]]
        asked = list(meta["asked"])
        kept = [a for a in asked if rng.random() < 0.72] or [rng.choice(asked)]
        if rng.random() < 0.08:
            kept.append(rng.choice([a for a in domain.attributes if a not in asked]))
        stated = []
        for name in kept:
            attribute = domain.attributes[name]
            truth = domain.fact(meta["subject"], name)
            value = rng.choice([v for v in attribute.values if v != truth]) if rng.random() < 0.12 else truth
            stated.append(attribute.statement.format(value))
        parts = [f"the {meta['subject']} {listed(stated)}."]
        if rng.random() < 0.3:
            parts.insert(rng.choice((0, 1)), rng.choice(FILLERS))
        for place, marks in enumerate(zip(COURTEOUS, CURT)):
            mood = rng.random()
            if mood < 0.5:
                parts.insert(place * len(parts), rng.choice(marks[0] if mood < 0.25 else marks[1]))
        return " ".join(part if before.endswith((",", ":")) else sentence_case(part) for before, part in zip(["", *parts], parts))


class ControlledDialogue(_Dialogue):
    """Preference for content: how much of what was asked is answered, correctly, without filler."""

    name: ClassVar[str] = "controlled_dialogue"
    summary: ClassVar[str] = "questions over a small knowledge base; preference depends on the facts answered"
    judge_prompt: ClassVar[str] = _JUDGE.format(
        criterion="The better answer states more of the facts that were asked for, states them correctly, and adds neither facts "
        "that were not asked for nor filler. Tone and style do not matter. The facts that hold:\n" + _facts()
    )

    def reward(self, meta: Mapping[str, Any], answer: str) -> float:
        """Return (right - 0.5 wrong) / asked - 0.15 filler, cut to [0, 1].

        right: asked attributes whose true value is stated; wrong: other values of the knowledge base that are stated (a false
        one, or one not asked for), each counted once; filler: sentences of more than five words that state no value.
        """
        domain = DOMAINS[meta["domain"]]
        wanted = {domain.fact(meta["subject"], name) for name in meta["asked"]}
        stated = _VALUES.intersection(words(answer))
        filler = sum(len(sentence) > LONGEST_MARK and _VALUES.isdisjoint(sentence) for sentence in sentences(answer))
        gained = (len(stated & wanted) - WRONG_COST * len(stated - wanted)) / len(wanted)
        return min(1.0, max(0.0, gained - FILLER_COST * filler))


class ControlledDialogueTone(_Dialogue):
    """The twin: preference for a courteous tone, whatever is said."""

    name: ClassVar[str] = "controlled_dialogue_tone"
    summary: ClassVar[str] = "the same questions and answers; preference depends on tone, not on the facts"
    judge_prompt: ClassVar[str] = _JUDGE.format(
        criterion="The better answer is the more courteous one. What it says, and whether that is true, does not matter. "
        f"Courteous: {_quoted(COURTEOUS)}. Curt: {_quoted(CURT)}."
    )

    def reward(self, meta: Mapping[str, Any], answer: str) -> float:
        """Return 0.5 + 0.25 (courteous - curt marks), cut to [0, 1]; an answer without words has 0.

        A mark counts once, and once for its place: an opening and a closing of each kind at most.
        """
        said = f" {' '.join(words(answer))} "
        if not said.strip():
            return 0.0
        marks = [sum(any(f" {' '.join(words(m))} " in said for m in place) for place in kind) for kind in (COURTEOUS, CURT)]
        return min(1.0, max(0.0, 0.5 + 0.25 * (marks[0] - marks[1])))


def texts() -> list[str]:
    """Return what this world's prompts and answers are put together from, with every word in each case it is used in."""
    marks = [mark for kind in (COURTEOUS, CURT) for place in kind for mark in place]
    questions = [f"{a.question}?" for domain in DOMAINS.values() for a in domain.attributes.values()]
    return [_facts().lower(), "The", *ASKS, *FILLERS, *marks, *questions]
