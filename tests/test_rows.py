"""The data axes: what a change of the training rows may touch, and what it must leave as it is."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spo_bench.errors import InputError, StageError
from spo_bench.files import read_json, read_jsonl, write_json, write_jsonl
from spo_bench.models.embedded import build_embedded
from spo_bench.models.policy import load_tokenizer
from spo_bench.spo.degrade import degraded_copies
from spo_bench.spo.settings import SpoSettings
from spo_bench.stages import data, goals, reference, rows
from spo_bench.stages.audit import check_dropped
from spo_bench.stages.base import Work
from spo_bench.stages.lists import scored, spread
from spo_bench.stages.relabel import goal_of, relabelled, stated
from spo_bench.task import SPLITS, Row, Task
from tasks.controlled_dialogue import ControlledDialogue

GOAL = Task.goal_prompt
CONFIG = {
    "label_flip": 0.0,
    "holdout": [],
    "relabel": None,
    "list": None,
    "seed": 0,
    "max_length": 64,
    "goals": [],
    "numerics": {"device": "cpu", "dtype": "float32", "held": "float32"},
    "micro_tokens": 512,
    "packing": "trie",
}
LOCAL = {
    "device": "cpu",
    "trust_remote_code": False,
    "task": "controlled_dialogue",
    "data": None,
    "tasks_dirs": [],
    "max_dropped": 0.02,
}
ANSWERS = (
    "The otter eats crabs.",
    "The otter lives in rivers.",
    "The otter lives in rivers and eats fish.",
    "The otter is awake at dawn.",
    "The otter calls with a whistle.",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The embedded model as a directory."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_embedded(folder, 0)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model):
    return load_tokenizer(model)


def row(number: int, **fields) -> Row:
    asked = fields.pop("prompt", None) or [
        {"role": "user", "content": f"Tell me about the otter {'again ' * number}: what does it eat?"}
    ]
    fields = {"chosen": ANSWERS[0], "rejected": ANSWERS[1], "scores": (0.9, 0.2), "domain": "abc"[number % 3], **fields}
    return Row(id=f"r{number}", prompt=tuple(asked), number=number, **fields)


def artifact(folder: Path, tokenizer, train, tested=None, max_length=64) -> Path:
    """Write what the stage ``data`` writes for these rows."""
    splits = {"sft": [], "heldout": [row(1)], "train": train, "eval": [row(n) for n in range(6)] if tested is None else tested}
    folder.mkdir(parents=True, exist_ok=True)
    audit = {"task": "controlled_dialogue", "splits": {}, "dropped_rows": [], "overlap": {"eval": 0, "heldout": 0}}
    for split in SPLITS:
        kept, audit["splits"][split], _ = data.prepare(ControlledDialogue(), splits[split], split, tokenizer, max_length)
        write_jsonl(folder / f"{split}.jsonl", kept)
    write_json(folder / "audit.json", audit)
    return folder


def made(folder: Path, source: Path, model: Path, inputs=None, **config) -> Path:
    """Run the stage ``rows`` into an empty directory."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rows.run(Work(out, {**CONFIG, **config}, {"data": source, "model": model, **(inputs or {})}, LOCAL))
    return out


def read(directory: Path, name: str) -> list[dict]:
    return list(read_jsonl(directory / f"{name}.jsonl"))


def axes(directory: Path) -> dict:
    return read_json(directory / "audit.json")["axes"]


# --- as a whole


def test_without_a_change_the_data_is_what_it_was(tmp_path, model, tokenizer):
    cut = row(9, chosen=" ".join([ANSWERS[2]] * 8))
    source = artifact(tmp_path / "data", tokenizer, [*(row(n) for n in range(4)), cut])
    out = made(tmp_path, source, model)
    for split in SPLITS:
        assert (out / f"{split}.jsonl").read_text() == (source / f"{split}.jsonl").read_text()
    audit = read_json(out / "audit.json")
    assert audit.pop("axes") == {"unusable": {"train": 0, "rows": [], "eval": 0}}
    assert audit == read_json(source / "audit.json")


def test_a_world_s_rows_go_through_every_axis_and_stay_usable(tmp_path, model):
    """Stage data, then rows: what later stages read is there, token ids belong to texts, and the audit still lets the run on."""
    source = tmp_path / "data"
    source.mkdir()
    config = {"limit": {"sft": 8, "train": 30, "heldout": 4, "eval": 12}, "seed": 0, "max_length": 96}
    data.run(Work(source, config, {"model": model}, LOCAL))
    assert all(len(record["more"]) == 6 for record in read(source, "train"))
    tokenizer = load_tokenizer(model)
    changes = [
        {"holdout": ["domain"], "label_flip": 0.5},
        {"holdout": ["tools"], "list": {"size": 4, "source": "data", "version": 1}, "label_flip": 0.3},
        {
            "holdout": ["tools"],
            "relabel": {"name": "reward_augmented", "scores": "data", "goal": 10},
            "goals": [1, 10],
            "label_flip": 0.3,
        },
    ]
    for number, change in enumerate(changes):
        out = made(tmp_path / str(number), source, model, max_length=96, **change)
        check_dropped(out, 0.02)
        train, tested = read(out, "train"), read(out, "eval")
        counts = read_json(out / "audit.json")["splits"]["train"]
        assert counts["kept"] == len(train) == len({record["id"] for record in train})
        assert counts["chosen_tokens"] == sum(len(record["chosen_ids"]) for record in train)
        assert not {record["domain"] for record in train} & {record["domain"] for record in tested}
        for record in (*train, *tested):
            assert tokenizer(record["prompt_text"], add_special_tokens=False)["input_ids"] == record["prompt_ids"]
            assert tokenizer.unk_token_id not in record["prompt_ids"]
        for record in train:
            texts = [record["chosen"], *record.get("between", ()), record["rejected"]]
            assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in reference.answer_ids(record)] == texts
        assert axes(out)["label_flip"]["flipped"] > 0
        assert (out / "sft.jsonl").read_bytes() == (source / "sft.jsonl").read_bytes()


def test_lists_are_not_relabelled(tmp_path, model, tokenizer):
    source = artifact(tmp_path / "data", tokenizer, [row(0)])
    both = {
        "list": {"size": 3, "source": "data", "version": 1},
        "relabel": {"name": "reward_augmented", "scores": "data", "goal": 10},
    }
    with pytest.raises(StageError, match="lists cannot be relabelled"):
        made(tmp_path, source, model, **both)


# --- label_flip


@given(st.lists(st.text(min_size=1), unique=True, max_size=40), st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
def test_flips_are_nested_and_depend_on_the_id_alone(ids, one, other, seed):
    train = [{"id": name, "chosen": "a", "rejected": "b", "scores": [2, 1]} for name in ids]
    low, high = (
        {r["id"] for r in rows.flipped(train[::way], rate, seed)[0] if r["chosen"] == "b"}
        for rate, way in ((min(one, other), 1), (max(one, other), -1))
    )
    assert low <= high
    assert rows.flipped(train, 1.0, seed)[1]["flipped"] == len(ids)
    assert rows.flipped(train, 0.0, seed)[0] == train


def test_the_share_of_flips_is_the_rate():
    """2,000 rows at .3: the standard deviation of the share is .0102; four of them are allowed."""
    train = [{"id": f"r{n}", "chosen": "a", "rejected": "b"} for n in range(2000)]
    assert rows.flipped(train, 0.3, 0)[1]["flipped"] / 2000 == pytest.approx(0.3, abs=0.041)
    kept = [[r["chosen"] for r in rows.flipped(train, 0.3, seed)[0]] for seed in (0, 1)]
    assert kept[0] != kept[1]


def test_a_flip_exchanges_answers_with_their_tokens_and_leaves_scores_in_place(tmp_path, model, tokenizer):
    source = artifact(tmp_path / "data", tokenizer, [row(n) for n in range(5)])
    out = made(tmp_path, source, model, label_flip=1.0)
    for old, new in zip(read(source, "train"), read(out, "train"), strict=True):
        assert (new["chosen"], new["chosen_ids"]) == (old["rejected"], old["rejected_ids"])
        assert (new["rejected"], new["rejected_ids"]) == (old["chosen"], old["chosen_ids"])
        same = ("id", "scores", "prompt_ids", "domain", "cluster", "meta")
        assert all(new[key] == old[key] for key in same)
    assert axes(out)["label_flip"] == {"rate": 1.0, "flipped": 5}
    for split in ("eval", "heldout"):
        assert (out / f"{split}.jsonl").read_bytes() == (source / f"{split}.jsonl").read_bytes()


def test_a_flipped_list_is_turned_round_whole():
    train = [{"id": "r", "chosen": "a", "between": ["b", "c"], "rejected": "d", "scores": [4, 3, 2, 1]}]
    (turned,), _ = rows.flipped(train, 1.0, 0)
    assert [turned["chosen"], *turned["between"], turned["rejected"]] == ["d", "c", "b", "a"]
    assert turned["scores"] == [4, 3, 2, 1]


# --- holdout


def test_held_out_domains_are_evaluated_and_not_trained_on(tmp_path, model, tokenizer):
    source = artifact(tmp_path / "data", tokenizer, [row(n) for n in range(9)])
    out = made(tmp_path, source, model, holdout=["a", "c"])
    assert [record["id"] for record in read(out, "train")] == ["r1", "r4", "r7"]
    assert [record["id"] for record in read(out, "eval")] == ["r0", "r2", "r3", "r5"]
    assert axes(out)["holdout"] == {"domains": ["a", "c"], "known": 3, "train_removed": 6, "eval_removed": 2}
    assert len(read(out, "heldout")) == 1


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (3, 1), (4, 1), (5, 2), (9, 3)])
def test_a_third_of_the_domains_whatever_the_order_of_the_rows(count, expected):
    train = [{"id": f"r{n}", "number": n, "domain": f"d{n % count}", "prompt_text": f"p{n}"} for n in range(2 * count)]
    parts = [rows.held_out(order, order, ["domain"], 0) for order in (train, train[::-1])]
    assert parts[0][2]["domains"] == parts[1][2]["domains"]
    assert len(parts[0][2]["domains"]) == expected
    seeds = {tuple(rows.held_out(train, train, ["domain"], seed)[2]["domains"]) for seed in range(20)}
    assert len(seeds) > 1


def test_a_prompt_under_two_domains_belongs_to_that_of_its_first_row():
    """The first row of a prompt stands for it in every metric, held out or not, so it decides."""
    tested = [
        {"id": f"r{n}", "number": n, "domain": d, "prompt_text": p}
        for n, (d, p) in enumerate([("a", "x"), ("b", "x"), ("b", "y")])
    ]
    for wanted, ids in (("a", ["r0", "r1"]), ("b", ["r2"])):
        assert [row["id"] for row in rows.held_out(tested, tested, [wanted], 0)[1]] == ids


def test_domains_that_cannot_be_held_out_are_refused():
    known = [{"id": "r", "number": n, "domain": "cooking" if n % 2 else "law", "prompt_text": f"p{n}"} for n in range(4)]
    bare = [*known, {"id": "x", "number": 7, "domain": None}]
    with pytest.raises(InputError, match=r"1 of 5 train rows have no domain \(the first is row 7\)"):
        rows.held_out(bare, known, ["law"], 0)
    with pytest.raises(InputError, match="did you mean 'cooking'"):
        rows.held_out(known, known, ["coking"], 0)
    with pytest.raises(InputError, match="no training row"):
        rows.held_out(known, known, ["cooking", "law"], 0)
    with pytest.raises(InputError, match="no evaluation row"):
        rows.held_out(known, known[::2], ["cooking"], 0)
    with pytest.raises(InputError, match="no training row"):
        rows.held_out(known[::2], known[::2], ["domain"], 0)


# --- relabel


def test_goals_are_an_affine_map_rounded_and_clipped():
    """From 0 to 9 the goal is the quality plus one; 3.5 + 1 goes up to 5."""
    assert [goal_of(q, 0, 9) for q in (-3, 0, 0.4, 3.5, 8.6, 9, 99)] == [1, 1, 1, 5, 10, 10, 10]
    assert goal_of(2, 2, 2) == 1


def test_a_pair_becomes_two_with_the_answers_exchanged_and_the_prompt_as_it_was(tmp_path, model, tokenizer):
    """Qualities 0 and 10 on two pairs, so percentiles 1 and 99 of (0, 0, 10, 10) are 0 and 10: goals 10 and 1: the score of the worse
    answer is 1 - ((10 - 1) / 9)^2 = 0."""
    dialogue = [
        {"role": "user", "content": "Why me?"},
        {"role": "assistant", "content": "That is all."},
        {"role": "user", "content": "Tell me again."},
    ]
    train = [row(0, scores=(10, 0)), row(1, scores=(10, 0), prompt=dialogue, cluster="same")]
    source = artifact(tmp_path / "data", tokenizer, train)
    out = made(tmp_path, source, model, relabel={"name": "reward_augmented", "scores": "data", "goal": 10})
    found = read(out, "train")
    assert [(r["id"], r["cluster"], r["goal"]) for r in found] == [
        ("r0:g10", "r0", 10), ("r0:g1", "r0", 1), ("r1:g10", "same", 10), ("r1:g1", "same", 1),
    ]  # fmt: skip
    plain = [old for old in read(source, "train") for _ in range(2)]
    for place, (old, new) in enumerate(zip(plain, found, strict=True)):
        sides = ("chosen", "rejected") if place % 2 == 0 else ("rejected", "chosen")
        assert [new[side] for side in ("chosen", "rejected")] == [old[side] for side in sides]
        assert [new[f"{side}_ids"] for side in ("chosen", "rejected")] == [old[f"{side}_ids"] for side in sides]
        assert new["prompt"] == [{"role": "system", "content": GOAL.format(goal=new["goal"])}, *old["prompt"]]
        assert new["prompt_text"] == old["prompt_text"].replace("<bos>", f"<bos><system>{GOAL.format(goal=new['goal'])}")
        assert new["scores"] == [1, 0]
    record = axes(out)["relabel"]
    assert (record["pairs"], record["equal_goals"], record["misordered"]) == (2, 0, 0)
    assert record["goal_stated_in"] == {"system message of its own": 4}
    assert record["rows_by_goal"] == {"1": 2, "10": 2}


qualities = st.floats(-1e3, 1e3)


@given(st.lists(st.tuples(qualities, qualities), min_size=1, max_size=12))
def test_every_pair_is_relabelled_or_counted_and_the_better_fit_to_the_goal_is_chosen(tokenizer, values):
    prompt = [{"role": "user", "content": "Why me?"}]
    pairs = [
        {"id": f"r{n}", "cluster": None, "prompt": prompt, "chosen": f"w{n}", "rejected": f"l{n}"} for n in range(len(values))
    ]
    try:
        found, record = relabelled(pairs, values, tokenizer, GOAL)
    except InputError as error:
        assert "leaves nothing" in str(error)  # noqa: PT017 - one of two outcomes
        return
    assert len(found) == 2 * (len(pairs) - record["equal_goals"] - record["misordered"])
    assert record["misordered"] == sum(w < l for w, l in values)  # noqa: E741
    low, high = record["lowest_goal_at"], record["highest_goal_at"]
    for first, second in zip(found[::2], found[1::2], strict=True):
        number = int(first["chosen"][1:])
        assert (first["chosen"], first["rejected"]) == (second["rejected"], second["chosen"]) == (f"w{number}", f"l{number}")
        assert (first["goal"], second["goal"]) == tuple(goal_of(q, low, high) for q in values[number])
        assert first["goal"] > second["goal"]
        assert first["scores"] == second["scores"] == [1.0, 1 - ((first["goal"] - second["goal"]) / 9) ** 2]


def test_pairs_without_a_direction_are_left_out_and_counted(tokenizer):
    """Qualities span 0 to 100 by the first pair (percentiles 1 and 99 near them): 50 and 51 share a goal, 20 < 70 is the wrong way."""
    prompt = [{"role": "user", "content": "Why me?"}]
    pairs = [{"id": f"r{n}", "cluster": None, "prompt": prompt, "chosen": "a", "rejected": "b"} for n in range(3)]
    found, record = relabelled(pairs, [(100, 0), (51, 50), (20, 70)], tokenizer, GOAL)
    assert [r["id"] for r in found] == ["r0:g10", "r0:g1"]
    assert (record["equal_goals"], record["misordered"]) == (1, 1)
    with pytest.raises(InputError, match=r"leaves nothing of 1 training pairs \(1 with one goal, 0"):
        relabelled(pairs[:1], [(3, 3)], tokenizer, GOAL)
    with pytest.raises(StageError, match="1 qualities"):
        relabelled(pairs[:1], [(float("nan"), 3)], tokenizer, GOAL)


REFUSING = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
SILENT = "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}{% endif %}{% endfor %}"
MUTE = "{% for m in messages %}<{{ m['role'] }}>{% endfor %}"


def test_a_goal_stands_with_the_system_message_or_where_the_template_allows_it(model):
    tokenizer = load_tokenizer(model)
    goal, asked = (
        GOAL.format(goal=7),
        [{"role": "user", "content": "Why me?"}, {"role": "assistant", "content": "So."}, {"role": "user", "content": "Why?"}],
    )
    messages, rendered, place = stated(tokenizer, [{"role": "system", "content": "Tell it short."}, *asked], goal)
    assert messages == [{"role": "system", "content": f"Tell it short. {goal}"}, *asked]
    assert place == "system message"
    assert rendered.text.startswith(f"<bos><system>Tell it short. {goal}<user>")
    for template in (REFUSING, SILENT):
        tokenizer.chat_template = template
        messages, rendered, place = stated(tokenizer, asked, goal)
        assert messages == [{"role": "user", "content": f"{goal}\n\nWhy me?"}, *asked[1:]]
        assert place == "user message"
        assert rendered.text == f"<user>{goal}\n\nWhy me?<assistant>So.<user>Why?"
    assert asked[0]["content"] == "Why me?"
    tokenizer.chat_template = MUTE
    with pytest.raises(StageError, match="shows a goal neither"):
        stated(tokenizer, asked, goal)


def test_the_policy_reads_the_goal_in_evaluation_and_judges_do_not(tmp_path, model, tokenizer):
    """Rows 0 and 9 ask the same: one prompt. A row that fits without a goal but not with one is left out of all goals."""
    twin = row(0, chosen=ANSWERS[2])
    tested = [row(0), Row(**{**twin.__dict__, "id": "r9"}), row(2), row(40)]
    source = artifact(tmp_path / "data", tokenizer, [row(n) for n in range(3)], tested)
    assert len(read(source, "eval")) == 4
    out = made(tmp_path, source, model, relabel={"name": "reward_augmented", "scores": "data", "goal": 10}, goals=[1, 4, 7, 10])
    plain = {record["id"]: record for record in read(source, "eval")}
    parts = {goal: read(out, f"eval@{goal}") for goal in (1, 4, 7, 10)}
    for goal, found in [(10, read(out, "eval")), *parts.items()]:
        for record in found:
            assert record["prompt"] == plain[record["id"]]["prompt"]
            assert record["prompt_text"] == plain[record["id"]]["prompt_text"].replace(
                "<bos>", f"<bos><system>{GOAL.format(goal=goal)}"
            )
            assert record["chosen_ids"] == plain[record["id"]]["chosen_ids"]
    assert [record["id"] for record in read(out, "eval")] == ["r0", "r9", "r2"]
    assert {tuple(record["id"] for record in found) for found in parts.values()} == {("r0", "r2")}
    assert [record["id"] for record in data.eval_prompts(out)] == ["r0", "r2"]
    assert axes(out)["unusable"]["eval"] == 1


def test_answers_behind_a_goal_are_cut_to_what_fits(tmp_path, model, tokenizer):
    """The prompt grows by the goal's tokens and one for its role; an answer that no longer fits loses its end token too."""
    long = row(0, chosen=" ".join([ANSWERS[3]] * 4), scores=(10, 0))
    length = len(tokenizer(GOAL.format(goal=10), add_special_tokens=False)["input_ids"]) + 1
    source = artifact(tmp_path / "data", tokenizer, [long], max_length=48)
    (old,) = read(source, "train")
    assert old["chosen_ids"][-1] == tokenizer.eos_token_id
    out = made(tmp_path, source, model, relabel={"name": "reward_augmented", "scores": "data", "goal": 10}, max_length=48)
    new = read(out, "train")[0]
    assert len(new["prompt_ids"]) == len(old["prompt_ids"]) + length
    assert new["chosen_ids"] == old["chosen_ids"][: 48 - len(new["prompt_ids"])]
    assert read_json(out / "audit.json")["splits"]["train"]["truncated_chosen"] == 1


def test_data_without_scores_cannot_be_relabelled_by_them(tmp_path, model, tokenizer):
    source = artifact(tmp_path / "data", tokenizer, [row(0), row(1, scores=None)])
    with pytest.raises(InputError, match=r"row 1 has no scores[\s\S]*scores: implicit"):
        made(tmp_path, source, model, relabel={"name": "reward_augmented", "scores": "data", "goal": 10})


def log_prob(model, prompt: list[int], completion: list[int]) -> float:
    """The model's own summed log-probability of a completion, by a plain forward pass."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return float(logits.detach().log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum())


def test_implicit_qualities_are_the_labeller_s_log_ratios(tmp_path, model, tokenizer):
    """Base and labeller are two random models; held-out rows are in the reference and not in the training rows."""
    from transformers import AutoModelForCausalLM

    from spo_bench.stages.relabel import qualities as of_answers

    build_embedded(tmp_path / "labeller" / "policy", 1)
    source = artifact(tmp_path / "data", tokenizer, [row(n, chosen=ANSWERS[n], rejected=ANSWERS[n + 1]) for n in range(4)])
    frozen = tmp_path / "reference"
    frozen.mkdir()
    reference.run(Work(frozen, CONFIG, {"policy": model, "data": source}, LOCAL))
    inputs = {"data": source, "model": model, "labeller": tmp_path / "labeller", "base": model, "reference": frozen}
    wanted = {"name": "reward_augmented", "scores": "implicit", "goal": 10}
    train = read(source, "train")[1:]
    found = of_answers(Work(tmp_path, {**CONFIG, "relabel": wanted}, inputs, LOCAL), train)
    policy, base = (AutoModelForCausalLM.from_pretrained(str(path)) for path in (tmp_path / "labeller" / "policy", model))
    for record, values in zip(train, found, strict=True):
        expected = [
            log_prob(policy, record["prompt_ids"], ids) - log_prob(base, record["prompt_ids"], ids)
            for ids in reference.answer_ids(record)
        ]
        assert values == pytest.approx(expected, abs=1e-3)
    out = made(tmp_path, source, model, inputs, relabel=wanted, holdout=["a"])
    record = axes(out)["relabel"]
    assert record["pairs"] == 2
    assert len(read(out, "train")) == 2 * (2 - record["equal_goals"] - record["misordered"])


def test_a_reward_model_gives_qualities_of_the_plain_prompt(tmp_path, model, tokenizer):
    from spo_bench.models.numerics import Numerics
    from spo_bench.models.reward import load_reward_model

    numerics = Numerics("cpu", "float32", "float32")
    torch.manual_seed(3)
    judge, judge_tokenizer = load_reward_model(model, numerics, fresh=True)
    judge.save_pretrained(tmp_path / "judge")
    judge_tokenizer.save_pretrained(tmp_path / "judge")
    train = [row(n, chosen=ANSWERS[n], rejected=ANSWERS[n + 1], scores=None) for n in range(4)]
    source = artifact(tmp_path / "data", tokenizer, train)
    out = made(
        tmp_path,
        source,
        model,
        {"reward_model": tmp_path / "judge"},
        relabel={"name": "reward_augmented", "scores": "reward", "goal": 5, "dtype": "float32"},
    )
    with torch.no_grad():
        worth = [
            [
                float(judge(input_ids=torch.tensor([record["prompt_ids"] + ids])).logits[0, 0])
                for ids in reference.answer_ids(record)
            ]
            for record in read(source, "train")
        ]
    low, high = np.percentile(worth, (1, 99))
    expected = {
        f"r{n}:g{goal}"
        for n, values in enumerate(worth)
        if values[0] > values[1] and goal_of(values[0], low, high) != goal_of(values[1], low, high)
        for goal in (goal_of(value, low, high) for value in values)
    }
    assert expected
    assert {record["id"] for record in read(out, "train")} == expected


# --- list


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=10), st.integers(2, 8))
def test_a_list_keeps_best_and_worst_and_spreads_the_ranks_between(scores, size):
    ranked = sorted(((f"a{n}", score) for n, score in enumerate(scores)), key=lambda answer: -answer[1])
    found = spread(ranked, size)
    if len(scores) < size or len(set(scores)) == 1:
        assert isinstance(found, str)
        return
    places = [ranked.index(answer) for answer in found]
    assert (places[0], places[-1], len(set(places))) == (0, len(scores) - 1, size)
    steps = Counter(np.diff(places).tolist())
    assert max(steps) - min(steps) <= 1


def test_answers_are_ranked_by_score_and_equal_texts_are_one():
    record = {"chosen": "b", "rejected": "e", "scores": [3, 1], "more": [["a", 4], ["b", 2], ["c", 3], ["d", 1]]}
    assert scored(record) == [("a", 4), ("b", 3), ("c", 3), ("d", 1), ("e", 1)]
    assert scored({**record, "scores": None}) == []


def test_lists_of_the_data_s_answers(tmp_path, model, tokenizer):
    """Row 0 ranks 2 > 0 > 3 > 1 > 4: of five, ranks 0, 1, 2, 4 (0, 4/3, 8/3, 4 rounded down). The others have no list of four."""
    train = [
        row(0, more=((ANSWERS[2], 1.0), (ANSWERS[3], 0.5), (ANSWERS[4], 0.1))),
        row(1, more=((ANSWERS[2], 1.0),)),
        row(2, scores=None),
        row(3, scores=(0.5, 0.5), more=((ANSWERS[2], 0.5), (ANSWERS[3], 0.5))),
    ]
    source = artifact(tmp_path / "data", tokenizer, train)
    out = made(tmp_path, source, model, list={"size": 4, "source": "data", "version": 1})
    (found,) = read(out, "train")
    assert [found["chosen"], *found["between"], found["rejected"]] == [ANSWERS[i] for i in (2, 0, 3, 4)]
    assert found["scores"] == [1.0, 0.9, 0.5, 0.1]
    assert all(ids[-1] == tokenizer.eos_token_id for ids in reference.answer_ids(found))
    assert [tokenizer.decode(ids[:-1]) for ids in found["between_ids"]] == found["between"]
    record = axes(out)["list"]
    assert record == {
        "size": 4, "list_source": "data", "kept": 1,
        "dropped": {"too few scored answers": 2, "best and worst have one score": 1},
    }  # fmt: skip
    counts = read_json(out / "audit.json")["splits"]["train"]
    assert (counts["rows"], counts["kept"], counts["eos_once_between"]) == (4, 1, 2)
    with pytest.raises(InputError, match=r"list_size 6 from data: no list can be made of any of 4[\s\S]*degraded"):
        made(tmp_path, source, model, list={"size": 6, "source": "data", "version": 1})


def test_lists_of_degraded_copies(tmp_path, model, tokenizer):
    """Degrees 0, 1/3, 2/3 and 1 of the chosen answer's key phrases gone; a cut answer and one with few phrases make no list."""
    whole = "The otter lives in rivers, eats crabs and is awake at dawn."
    train = [row(0, chosen=whole), row(1, chosen=" ".join([whole] * 5)), row(2, chosen="The owl.")]
    source = artifact(tmp_path / "data", tokenizer, train)
    assert read(source, "train")[1]["chosen_ids"][-1] != tokenizer.eos_token_id
    out = made(tmp_path, source, model, list={"size": 4, "source": "degraded", "version": 1})
    (found,) = read(out, "train")
    assert [found["chosen"], *found["between"], found["rejected"]] == degraded_copies(whole, SpoSettings(degrees=4), 0)
    assert found["scores"] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert axes(out)["list"]["list_source"] == "degraded"
    assert axes(out)["list"]["dropped"] == {"the chosen answer was cut": 1, "too few key phrases": 1}
    with pytest.raises(InputError, match="lower list_size"):
        made(tmp_path, source, model, list={"size": 16, "source": "degraded", "version": 1})


def test_answers_alike_after_truncation_make_no_list(tmp_path, model, tokenizer):
    start = " ".join([ANSWERS[2]] * 6)
    train = [row(0, more=((f"{start} So.", 0.5), (f"{start} Why?", 0.4))), row(1, more=((ANSWERS[2], 0.5), (ANSWERS[3], 0.4)))]
    source = artifact(tmp_path / "data", tokenizer, train)
    out = made(tmp_path, source, model, list={"size": 4, "source": "data", "version": 1})
    assert [record["id"] for record in read(out, "train")] == ["r1"]
    assert axes(out)["unusable"] == {
        "train": 1,
        "rows": [{"id": "r0", "reason": "two answers are identical after truncation"}],
        "eval": 0,
    }


# --- controllability


def controllability(
    folder: Path, source: Path, answers: dict[int, dict[str, str]], task="controlled_dialogue", inputs=None
) -> dict:
    given_ = dict(inputs or {})
    for goal, texts in answers.items():
        path = folder / f"samples{goal}"
        path.mkdir(exist_ok=True)
        write_jsonl(path / "samples.jsonl", [{"id": name, "answer": text} for name, text in texts.items()])
        given_[f"samples:{goal}"] = path
    out = folder / "goals"
    out.mkdir(exist_ok=True)
    config = {"goals": list(answers), "max_length": 64, "numerics": CONFIG["numerics"]}
    local = {**LOCAL, "task": task, "data": given_.pop("pairs", None)}
    goals.run(Work(out, config, {"data": source, **given_}, local))
    return json.loads((out / "scores.json").read_text())["metrics"]


def test_controllability_by_hand(tmp_path, tokenizer):
    """Rewards 0, 0, 0, .5 at goals 1, 4, 7, 10: deviations (-4.5, -1.5, 1.5, 4.5) and (-1, -1, -1, 3)/8 give
    r = 18 / sqrt(45 * 12) = .7746. The same answer under every goal did not follow: 0."""
    facts = {"domain": "animals", "subject": "otter", "asked": ["home", "food"]}
    tested = [row(n, meta=facts, cluster="one") for n in range(2)]
    source = artifact(tmp_path / "data", tokenizer, [row(0)], tested)
    answers = {goal: {"r0": "So.", "r1": ANSWERS[0]} for goal in (1, 4, 7)} | {10: {"r0": ANSWERS[0], "r1": ANSWERS[0]}}
    metrics = controllability(tmp_path, source, answers)
    found = metrics["controllability"]
    assert found["ids"] == ["r0", "r1"]
    assert found["values"] == [pytest.approx(18 / (45 * 12) ** 0.5), 0.0]
    assert (found["clusters"], found["unit"], found["higher_is_better"]) == (["one", "one"], "prompt", True)
    assert [metrics[f"score_at_goal_{goal}"]["values"] for goal in answers] == [[0, 0.5]] * 3 + [[0.5, 0.5]]
    assert [metrics[f"score_at_goal_{goal}"]["higher_is_better"] for goal in answers] == [False, False, True, True]


def test_controllability_of_real_data_needs_a_reward_model(tmp_path, model, tokenizer):
    from spo_bench.models.numerics import Numerics
    from spo_bench.models.reward import load_reward_model

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    source = artifact(tmp_path / "data", tokenizer, [row(0)], [row(0)])
    answers = {1: {"r0": ANSWERS[0]}, 10: {"r0": ANSWERS[1]}}
    with pytest.raises(InputError, match="without a reward model"):
        controllability(tmp_path, source, answers, "dialogue", {"pairs": str(pairs)})
    judge, judge_tokenizer = load_reward_model(model, Numerics("cpu", "float32", "float32"), fresh=True)
    judge.save_pretrained(tmp_path / "judge")
    judge_tokenizer.save_pretrained(tmp_path / "judge")
    metrics = controllability(tmp_path, source, answers, "dialogue", {"pairs": str(pairs), "reward_model": tmp_path / "judge"})
    low, high = (metrics[f"score_at_goal_{goal}"]["values"][0] for goal in (1, 10))
    assert low != high
    assert metrics["controllability"]["values"] == [pytest.approx(1.0 if high > low else -1.0)]
