"""The controlled worlds and the embedded model that knows their words."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from spo_bench.models.embedded import SPECIAL, VOCABULARY, build_embedded, embedded_identity, vocabulary
from spo_bench.plugins import get_task
from spo_bench.spo.degrade import degraded_copies
from spo_bench.spo.keywords import phrases
from spo_bench.spo.settings import SpoSettings
from spo_bench.task import SPLITS, Row
from tasks import controlled_dialogue, controlled_summarization
from tasks._world import MIN_GAP, MORE, ControlledTask, listed, sentences, split_of, words
from tasks._world import texts as goals

DIALOGUE, TONE = controlled_dialogue.ControlledDialogue(), controlled_dialogue.ControlledDialogueTone()
SUMMARY, BREVITY = controlled_summarization.ControlledSummarization(), controlled_summarization.ControlledSummarizationBrevity()
WORLDS = (DIALOGUE, TONE, SUMMARY, BREVITY)
OTTER = {"domain": "animals", "subject": "otter", "asked": ["home", "food"]}  # lives in rivers, eats crabs, awake at dawn
DAY = {"events": ["flood", "storm", "breeze", "sale", "prank"]}  # worth 4, 2, 1, 1, 1: the best three are worth 7

PINNED = {
    "controlled_dialogue": "746f1681",
    "controlled_dialogue_tone": "c1bbe4f6",
    "controlled_summarization": "04aa376c",
    "controlled_summarization_brevity": "c8a70560",
}

every_world = pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)


def prompt(row: Row) -> str:
    return row.prompt[0]["content"]


# --- rows


@every_world
def test_a_split_is_decided_by_the_prompt_so_splits_share_none_whatever_the_seed(world: ControlledTask):
    prompts = {split: {prompt(row) for seed in (0, 1) for row in world.load(split, 150, seed)} for split in SPLITS}
    for split, found in prompts.items():
        assert {split_of(text) for text in found} == {split}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values()))


@every_world
def test_rows_are_a_function_of_the_seed_and_a_smaller_limit_is_a_prefix(world: ControlledTask):
    rows = world.load("train", 60, 3)
    assert rows == world.load("train", 60, 3)
    assert world.load("train", 20, 3) == rows[:20]
    assert world.load("train", 60, 4) != rows
    assert len(world.load("eval", None, 0)) == 256
    assert world.load("train", 0, 3) == []


def test_the_first_rows_of_seed_zero_are_pinned():
    """A change here is a change of the generator: raise ``generator`` (or ``version``), because stored artifacts name it."""
    drawn = {world.name: "".join(row.id for row in world.load("train", 20, 0)) for world in WORLDS}
    assert {name: hashlib.sha256(ids.encode()).hexdigest()[:8] for name, ids in drawn.items()} == PINNED
    assert [world.identity()["generator"] for world in WORLDS] == [1] * 4


@every_world
def test_training_rows_carry_further_answers_with_their_reward(world: ControlledTask):
    rows = world.load("train", 300, 0)
    for row in rows:
        texts = [row.chosen, row.rejected, *(text for text, _ in row.more)]
        assert len(set(texts)) == 2 + MORE
        assert all(score == world.true_reward(row, text) for text, score in row.more)
    assert {row.more for split in ("sft", "heldout", "eval") for row in world.load(split, 20, 0)} == {()}


@every_world
def test_rows_are_well_formed(world: ControlledTask):
    rows = world.load("train", 300, 0)
    assert len({row.id for row in rows}) == len({prompt(row) for row in rows}) == 300
    assert [row.number for row in rows] == list(range(1, 301))
    for row in rows:
        assert [message["role"] for message in row.prompt] == ["user"]
        assert row.unusable is None
        assert json.loads(json.dumps(row.meta)) == row.meta
    domains = controlled_dialogue.DOMAINS if world.world == "dialogue" else controlled_summarization.EVENTS
    assert {row.domain for row in rows} == set(domains)


@every_world
def test_the_chosen_answer_has_the_higher_reward_with_close_and_wide_gaps(world: ControlledTask):
    rows = world.load("train", 300, 0)
    assert all(row.scores == (world.true_reward(row, row.chosen), world.true_reward(row, row.rejected)) for row in rows)
    gaps = [row.scores[0] - row.scores[1] for row in rows if row.scores]
    assert min(gaps) >= MIN_GAP
    assert sum(gap <= 0.26 for gap in gaps) > 30
    assert sum(gap >= 0.45 for gap in gaps) > 30


@every_world
def test_demonstrations_are_of_mixed_quality_so_that_training_has_room(world: ControlledTask):
    rows = world.load("sft", 2000, 0)
    assert len(rows) == 2000
    assert {row.rejected for row in rows} == {""}
    assert 0.4 < mean(world.true_reward(row, row.chosen) for row in rows) < 0.7


@pytest.mark.parametrize(("base", "twin"), [(DIALOGUE, TONE), (SUMMARY, BREVITY)], ids=["dialogue", "summarization"])
def test_a_twin_has_the_same_prompts_and_demonstrations_but_another_preference(base: ControlledTask, twin: ControlledTask):
    assert base.load("sft", 50, 0) == twin.load("sft", 50, 0)
    for split in ("train", "heldout", "eval"):
        assert [prompt(row) for row in base.load(split, 50, 0)] == [prompt(row) for row in twin.load(split, 50, 0)]
    pairs = base.load("train", 400, 0)
    agree = mean(twin.true_reward(row, row.chosen) > twin.true_reward(row, row.rejected) for row in pairs)
    assert agree < 0.55  # ties included: knowing the one preference does not give the other


# --- rewards


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The otter lives in rivers and eats crabs.", 1.0),
        ("If I may, the otter LIVES IN RIVERS and eats crabs. Now be off.", 1.0),  # tone costs nothing
        ("The otter eats crabs.", 0.5),  # one of two
        ("The otter lives in rivers and eats fish.", 0.25),  # (1 - 0.5) / 2
        ("The otter lives in rivers, eats crabs and is awake at dawn.", 0.75),  # (2 - 0.5) / 2: nobody asked for the hour
        ("The otter eats crabs, crabs and crabs.", 0.5),  # a repeated fact counts once
        ("The otter eats crabs. There is a long story behind this, as many people will tell.", 0.35),  # 0.5 - 0.15
        ("Rivers ponds barns reeds crabs worms fish mice", 0.0),  # 2 right, 6 wrong: naming everything gains nothing
        ("", 0.0),
    ],
)
def test_content_reward_of_dialogue(answer: str, expected: float):
    assert DIALOGUE.reward(OTTER, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The otter eats crabs.", 0.5),
        ("If I may, the otter eats crabs.", 0.75),
        ("Here you are: the otter eats fish. I am here for you.", 1.0),  # what it says does not matter
        ("If I may, here you are: if I may.", 0.75),  # an opening counts once
        ("Why me? The otter eats crabs.", 0.25),
        ("Why me? That is all.", 0.0),
        ("If I may, that is all.", 0.5),
        ("?!", 0.0),
    ],
)
def test_tone_reward_of_dialogue(answer: str, expected: float):
    assert TONE.reward(OTTER, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A flood at the mill, a storm at the harbour and a sale at the bazaar.", 1.0),  # (4 + 2 + 1) / 7
        ("A flood at the mill.", 4 / 7),
        ("A flood, a flood and a flood.", 4 / 7),
        ("A flood and a tornado.", 0.0),  # the tornado is invented: 4 - 4
        ("A flood at the mill, and a merger.", 2 / 7),  # 4 - 2
        (
            "There was a breeze over at the beach, there was a prank over at the college and a flood.",
            2 / 7,
        ),  # word 17 does not count
        ("", 0.0),
    ],
)
def test_content_reward_of_summarization(answer: str, expected: float):
    assert SUMMARY.reward(DAY, answer) == pytest.approx(expected)


@pytest.mark.parametrize(("length", "expected"), [(0, 0.0), (1, 1.0), (5, 1.0), (20, 0.5), (35, 0.0), (400, 0.0)])
def test_brevity_reward_falls_from_one_at_5_words_to_zero_at_35(length: int, expected: float):
    assert BREVITY.reward(DAY, " ".join(["flood"] * length)) == pytest.approx(expected)


@given(
    answer=st.text() | st.lists(st.sampled_from(sorted(vocabulary())), max_size=60).map(lambda t: "".join(t).replace("▁", " "))
)
def test_any_text_has_a_reward_between_zero_and_one(answer: str):
    for world, meta in ((DIALOGUE, OTTER), (TONE, OTTER), (SUMMARY, DAY), (BREVITY, DAY)):
        assert 0.0 <= world.reward(meta, answer) <= 1.0


def test_a_value_or_kind_is_one_word_that_the_world_uses_for_nothing_else():
    values = [value for domain in controlled_dialogue.DOMAINS.values() for a in domain.attributes.values() for value in a.values]
    other = [*controlled_dialogue.ASKS, *controlled_dialogue.FILLERS, *marks()]
    other += [
        text for d in controlled_dialogue.DOMAINS.values() for a in d.attributes.values() for text in (a.question, a.statement)
    ]
    other += [subject for domain in controlled_dialogue.DOMAINS.values() for subject in domain.subjects]
    assert len(set(values)) == len(values)
    assert all(words(value) == [value] for value in values)
    assert not set(values) & set(words(" ".join(other)))
    forms = " ".join(
        [*controlled_summarization.WORDY, *controlled_summarization.LEADS, *controlled_summarization.PLACES.values()]
    )
    assert not controlled_summarization.WORTH.keys() & set(words(forms))


# --- what SPO sees of them


def marks() -> list[str]:
    return [m for kind in (controlled_dialogue.COURTEOUS, controlled_dialogue.CURT) for place in kind for m in place]


def test_marks_of_tone_hold_no_key_phrase_so_removing_key_content_leaves_the_tone_reward_as_it_is():
    assert [phrases(mark) for mark in marks()] == [[]] * len(marks())
    assert all(len(words(mark)) <= controlled_dialogue.LONGEST_MARK for mark in marks())
    for row in TONE.load("train", 100, 0):
        copies = [copy for copy in degraded_copies(row.chosen, SpoSettings(), 0) if copy is not None]
        assert {TONE.true_reward(row, copy) for copy in copies} == {TONE.true_reward(row, row.chosen)}


def test_removing_all_key_content_leaves_nothing_of_the_content_rewards():
    for world in (DIALOGUE, SUMMARY):
        for row in world.load("train", 100, 0):
            copy = degraded_copies(row.chosen, SpoSettings(), 0)[-1]
            assert copy is None or world.true_reward(row, copy) == 0.0


@every_world
def test_a_judge_prompt_has_its_three_slots_and_says_what_counts(world: ControlledTask):
    filled = world.judge_prompt.format(prompt="PROMPT", a="FIRST", b="SECOND")
    assert re.search("PROMPT.*FIRST.*SECOND", filled, re.DOTALL)
    assert "better" in filled
    if world is DIALOGUE:
        assert "The otter lives in rivers, eats crabs, is awake at dawn and calls with a whistle." in filled


@every_world
def test_a_world_is_found_as_a_plugin(world: ControlledTask):
    found = get_task(world.name)
    assert found.controlled
    assert not found.needs_data
    assert found.summary
    assert found.load("eval", 5, 0) == world.load("eval", 5, 0)


def test_helpers():
    assert words("It's 3 o'clock: Übung!") == ["it", "s", "o", "clock", "bung"]
    assert sentences("One two. Three:\nfour; !") == [["one", "two"], ["three"], ["four"]]
    assert [listed(parts) for parts in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


# --- the embedded model


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("embedded")
    build_embedded(directory, seed=0)
    return directory


def test_the_vocabulary_file_is_exactly_what_the_worlds_are_made_of():
    """Every word as the worlds and goals write it, after a space; marks, digits and the mask "___" with and without one."""
    texts = [*controlled_dialogue.texts(), *controlled_summarization.texts(), *goals()]
    found = {piece for text in texts for piece in re.findall(r"[A-Za-z]+|[^A-Za-z\s]", text.replace("{}", ""))}
    spaced = {f"▁{piece}" for piece in {*found, "___"}}
    bare = {piece for piece in {*found, "___"} if not piece.isalpha()}
    assert set(vocabulary()) - set(SPECIAL) == spaced | bare
    assert len(vocabulary()) == len(set(vocabulary()))
    assert VOCABULARY.read_text(encoding="utf-8").endswith("\n")


@every_world
def test_every_text_and_its_degraded_copies_survive_encoding(world: ControlledTask, embedded: Path):
    tokenizer = AutoTokenizer.from_pretrained(str(embedded))
    longest = {"prompt": 0, "answer": 0}
    for split in SPLITS:
        for row in world.load(split, 300, 0):
            copies = [
                copy
                for text in (row.chosen, row.rejected)
                for op in ("delete", "mask")
                for copy in degraded_copies(text, SpoSettings(op=op), 0)
                if copy
            ]
            for kind, text in [("prompt", prompt(row)), *[("answer", copy) for copy in copies]]:
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.decode(ids) == text
                assert tokenizer.unk_token_id not in ids
                longest[kind] = max(longest[kind], len(ids))
    assert longest["prompt"] <= 60
    assert longest["answer"] <= 45


def test_a_goal_survives_encoding_digit_by_digit(embedded: Path):
    tokenizer = AutoTokenizer.from_pretrained(str(embedded))
    for goal, text in enumerate(goals(), start=1):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
        digits = [token.lstrip("▁") for token in tokenizer.convert_ids_to_tokens(ids) if token.lstrip("▁").isdigit()]
        assert digits == [*str(goal), "1", *"10"]


def test_the_chat_template_renders_roles_and_an_answer_ends(embedded: Path):
    tokenizer = AutoTokenizer.from_pretrained(str(embedded))
    asked = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Why me?"}]
    assert (
        tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        == "<bos><system>Be brief<user>Why me?<assistant>"
    )
    answered = [*asked, {"role": "assistant", "content": "That is all."}]
    assert tokenizer.apply_chat_template(answered, tokenize=False).endswith("<assistant>That is all.<eos>")
    whole = tokenizer("<user>Why me?<assistant>That is all.", add_special_tokens=False)["input_ids"]
    parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("<user>Why me?<assistant>", "That is all.")]
    assert whole == parts[0] + parts[1]  # a prompt and its answer never merge


def test_the_seed_decides_the_weights_and_the_global_random_state_is_left_alone(embedded: Path, tmp_path: Path):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_embedded(tmp_path / "same", seed=0)
    assert torch.rand(1) == expected
    build_embedded(tmp_path / "other", seed=1)
    weights = [(d / "model.safetensors").read_bytes() for d in (embedded, tmp_path / "same", tmp_path / "other")]
    assert weights[0] == weights[1] != weights[2]


def test_the_directory_opens_with_from_pretrained_and_matches_its_identity(embedded: Path):
    model = AutoModelForCausalLM.from_pretrained(str(embedded))
    identity = embedded_identity()
    assert json.loads(json.dumps(identity)) == identity
    assert {key: getattr(model.config, key) for key in ("hidden_size", "num_hidden_layers", "vocab_size")} == {
        "hidden_size": identity["architecture"]["hidden_size"],
        "num_hidden_layers": identity["architecture"]["num_hidden_layers"],
        "vocab_size": len(identity["vocabulary"]),
    }
    assert model.generation_config.eos_token_id == AutoTokenizer.from_pretrained(str(embedded)).eos_token_id
