"""Every data axis, end to end, in a world whose true reward is known: what must come out comes out."""

from __future__ import annotations

import numpy as np
import pytest

import spo_bench
from spo_bench.api import cells_of
from spo_bench.errors import InputError
from spo_bench.files import read_json, read_jsonl
from spo_bench.matrix.axes import DataAxes, Point, check_point
from spo_bench.matrix.load import load_spec
from spo_bench.methods import method_names

LEARNED = {
    "name": "axes",
    "models": ["embedded"],
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 512, "eval": 128, "heldout": 16, "sft": 4000}}],
    "methods": ["dpo"],
    "spo": [False],
    "seeds": [0],
    "sft": {"steps": 1200, "batch_size": 16, "learning_rate": 2e-3},
    "train": {"batch_size": 16, "learning_rate": 2e-4, "max_steps": 48, "max_length": 128, "micro_tokens": 1024},
    "generate": {"max_new_tokens": 48, "temperature": 0.7, "batch_size": 128},
    "judge": "gold",
}
TINY = {
    **LEARNED,
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 48, "eval": 24, "heldout": 8, "sft": 64}}],
    "sft": {"steps": 60, "batch_size": 16, "learning_rate": 2e-3},
    "train": {"batch_size": 8, "learning_rate": 2e-4, "max_steps": 2, "max_length": 128, "micro_tokens": 1024},
    "generate": {"max_new_tokens": 24, "batch_size": 64},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store: the policy that learned to answer is made once for all axes."""
    return tmp_path_factory.mktemp("axes")


def run(store, name, base=LEARNED, **changes):
    """Run a matrix; return (metric values by (method, axes, seed), comparison rows, the run's directory)."""
    done = spo_bench.run({**base, **changes}, store / f"run-{name}", store=store / "store")
    assert not done.failed
    values: dict = {}
    for row in read_jsonl(done.out / "metrics.jsonl"):
        axes = ", ".join(f"{key}={value}" for key, value in sorted(row["axes"].items()))
        values.setdefault((row["method"], axes, row["seed"]), {})[row["metric"]] = row["value"]
    return values, list(read_jsonl(done.out / "comparisons.jsonl")), done.out


def contrast(rows, variant, metric="true_reward", kind="axis"):
    (row,) = [r for r in rows if r["kind"] == kind and r["variant"] == variant and r["metric"] == metric]
    return row


def test_with_half_of_the_labels_flipped_nothing_is_learned(store):
    """The known reward orders every pair, so half of the labels turned round leaves no preference: held-out accuracy is near a
    coin's, and of the gain over the SFT policy most is gone.
    """
    values, rows, _ = run(store, "flip", data_axes={"label_flip": [0.0, 0.5]})
    sft, plain, noise = (values[key] for key in (("sft", "", 0), ("dpo", "", 0), ("dpo", "label_flip=0.5", 0)))
    assert plain["implicit_accuracy"] > 0.75
    assert abs(noise["implicit_accuracy"] - 0.5) < 0.12
    assert noise["true_reward"] - sft["true_reward"] < 0.4 * (plain["true_reward"] - sft["true_reward"])
    assert contrast(rows, "dpo (label_flip=0.5)")["high"] < 0


def test_more_data_is_better_and_its_curve_has_an_area(store):
    """At equal epochs the reward rises with the share of the data; the area lies between the curve's ends; with equal steps every
    share takes the steps of all rows.
    """
    train = {key: value for key, value in LEARNED["train"].items() if key != "max_steps"} | {"epochs": 2}
    values, rows, out = run(store, "fraction", data_axes={"fraction": [0.1, 0.4, 1.0]}, train=train)
    curve = [values["dpo", axes, 0]["true_reward"] for axes in ("fraction=0.1", "fraction=0.4", "")]
    assert curve[0] < curve[1] < curve[2]
    assert contrast(rows, "dpo (fraction=0.1)")["high"] < 0
    assert (out / "figures" / "axis-fraction.png").is_file()
    _, _, equal = run(
        store, "equal", TINY, data_axes={"fraction": [0.5, 1.0], "equal": "steps"}, train={**train, "batch_size": 8}
    )
    assert [len(list(read_jsonl(path))) for path in equal.glob("cells/*dpo*/train.jsonl")] == [12, 12]


def test_a_domain_that_was_held_out_is_done_worse(store):
    """Plants, animals and tools are known by facts of their own: on the same prompts, a policy that saw no preference about a
    domain does worse than one that did. The gap of each domain, weighted by its prompts, is above 0 by more than its interval.
    """
    tasks = [{"name": "controlled_dialogue", "limit": {"train": 512, "eval": 384, "heldout": 16, "sft": 4000}}]
    domains = ["plants", "animals", "tools"]
    train = {**LEARNED["train"], "max_steps": 96}
    _, rows, _ = run(store, "holdout", data_axes={"holdout": ["none", *domains]}, tasks=tasks, train=train)
    found = [contrast(rows, f"dpo (holdout={name})") for name in domains]
    counts = np.array([row["n_prompts"] for row in found])
    assert counts.sum() == 384
    gaps = -np.array([row["diff"] for row in found])
    errors = np.array([row["high"] - row["low"] for row in found]) / (2 * 1.96)
    share = counts / counts.sum()
    assert (share * gaps).sum() > 1.96 * np.sqrt((share**2 * errors**2).sum())


def test_asking_for_more_gives_more(store):
    """Trained on goal-conditioned pairs, the policy asked for 10 earns more than asked for 7, and that more than for 4. The
    embedded policy has never read a goal before, so it needs a likelihood term and more steps.
    """
    train = {**LEARNED["train"], "learning_rate": 5e-4, "max_steps": 300}
    method = {"name": "dpo", "plus": [{"name": "sft", "eta": 1.0}]}
    values, _, _ = run(store, "relabel", data_axes={"relabel": "reward_augmented"}, methods=[method], train=train)
    ((_, found),) = [(key, value) for key, value in values.items() if key[0] != "sft"]
    scores = [found[f"score_at_goal_{goal}"] for goal in (4, 7, 10)]
    assert scores[0] + 0.1 < scores[1]
    assert scores[1] + 0.05 < scores[2]
    assert scores[2] == found["true_reward"]
    assert found["controllability"] > 0.3


def test_ranked_lists_teach_and_degraded_copies_are_another_lesson(store):
    """Four scored answers a prompt teach the known reward; an answer's own degraded copies say nothing of wrong facts or filler,
    so a policy taught by these alone earns less. How much less varies with the seed (.09 and .19), so two are averaged.
    """
    axes = {"list_size": [4, {"size": 4, "source": "degraded"}]}
    values, _, _ = run(store, "lists", data_axes=axes, methods=["dpo", "neural_ndcg"], seeds=[0, 1])

    def reward(method, axis):
        return sum(values[method, axis, seed]["true_reward"] for seed in (0, 1)) / 2

    for method in ("dpo", "neural_ndcg"):
        ranked, copies = (reward(method, f"list_size={name}") for name in ("4", "4 degraded"))
        assert ranked > reward("sft", "") + 0.1
        assert copies < ranked - 0.1


def test_a_policy_learns_from_its_own_answers(store):
    """Ranked by the known reward, the policy's own answers teach as much as the data's pairs."""
    values, _, _ = run(store, "regime", data_axes={"regime": ["offline", {"name": "semi_online", "every": 8}]})
    sft, offline = values["sft", "", 0]["true_reward"], values["dpo", "", 0]["true_reward"]
    own = values["dpo", "regime=semi_online(every=8)", 0]["true_reward"]
    assert own > sft + 0.1
    assert own > offline - 0.03


def test_every_method_with_and_without_spo(store):
    """The whole field on a controlled world, two steps each: every cell is done and every method has its contrast."""
    _, rows, out = run(store, "field", TINY, methods=method_names(), spo=[False, True])
    assert len(list(read_jsonl(out / "cells.jsonl"))) == 1 + 2 * len(method_names())
    assert {row["method"] for row in rows if row["kind"] == "spo" and row["metric"] == "kl"} == set(method_names())


CROSSED = [
    {"fraction": 0.5, "label_flip": 0.25, "holdout": "domain", "regime": "offline"},
    {"relabel": {"name": "reward_augmented", "scores": "implicit"}, "fraction": 0.5, "holdout": "domain"},
    {"relabel": "reward_augmented", "label_flip": 0.25},
    {"list_size": 3, "holdout": ["plants"]},
    {"list_size": {"size": 3, "source": "degraded"}},
    {"regime": "online"},
    {"regime": {"name": "semi_online", "every": 2, "samples": 0, "human": True, "greedy": True, "refresh": 1, "reuse": 2}},
]


@pytest.mark.parametrize("axes", CROSSED, ids=[" ".join(axes) for axes in CROSSED])
def test_axes_cross_with_methods_additions_and_spo(store, axes):
    """Paired, unpaired, listwise and with an addition, each with and without SPO: every cell is done, and SPO has its contrast."""
    methods = ["dpo+exploration", "kto", "neural_ndcg", "wpo"]
    _, rows, out = run(store, "crossed" + str(CROSSED.index(axes)), TINY, data_axes=axes, methods=methods, spo=[False, True])
    cells = list(read_jsonl(out / "cells.jsonl"))
    assert len(cells) == 9
    assert all(cell["axes"] for cell in cells if cell["method"] != "sft")
    assert {row["method"] for row in rows if row["kind"] == "spo" and row["metric"] == "true_reward"} == set(methods)


def test_rounds_are_the_same_again_and_say_what_they_saw(store, tmp_path):
    """Sampling during training draws from the seed alone: another store, the same bytes. The summary counts rounds and pairs."""
    axes = {"regime": {"name": "semi_online", "every": 1, "samples": 3}}
    first = run(store, "again", TINY, data_axes=axes)[0]
    second, _, out = run(tmp_path, "again", TINY, data_axes=axes)
    key = ("dpo", "regime=semi_online(every=1, samples=3)", 0)
    for metric in ("true_reward", "kl", "chosen_logratio", "length"):
        assert first[key][metric] == second[key][metric]
    (policy,) = out.glob("cells/*dpo*/policy")
    counts = read_json(policy.resolve().parent / "summary.json")["regime"]
    assert counts["pairs"] + counts["ties"] == counts["prompts"]
    steps = list(read_jsonl(policy.parent / "train.jsonl"))
    assert [step["pairs"] for step in steps] == [8, 8]


@pytest.mark.parametrize(
    "change",
    [
        {"train": {**TINY["train"], "batch_size": 6}},  # what a coupled loss sees together
        {"train": {**TINY["train"], "micro_tokens": 512}},
        {"methods": [{"name": "bco", "beta": 0.2}]},
        {"methods": ["bco+sft"]},
        {"data_axes": {"label_flip": 0.1}},
        {"data_axes": {"regime": "online"}},
        {"data_axes": {"regime": {"name": "online", "reuse": 2}}},
        {"data_axes": {"regime": "online"}, "generate": {**TINY["generate"], "temperature": 0.5}},
    ],
    ids=str,
)
def test_what_changes_numbers_changes_the_key(store, change):
    """The training key of a batch-coupled method holds its batch layout, its additions, and where its pairs come from."""

    def keys(spec):
        cells = cells_of(load_spec(spec), store / "store", "cpu")
        return {cell.stages["train"].key for cell in cells if "train" in cell.stages}

    plain = {**TINY, "methods": ["bco"]}
    assert keys(plain) == keys({**plain})
    assert not keys(plain) & keys({**plain, **change})
    if "generate" in change:
        assert not keys({**plain, "data_axes": change["data_axes"]}) & keys({**plain, **change})


def test_a_refused_combination_says_why():
    axes = DataAxes.model_validate({"regime": "online", "label_flip": 0.2})
    with pytest.raises(InputError, match=r"(?s)regime=online.*only offline pairs can be flipped"):
        check_point(next(axes.points()))
    assert Point().axes() == {}
    check_point(Point())


REFUSED = [
    ({"methods": ["dpo+ref_sync"], "train": {**TINY["train"], "lora": {"rank": 4}}}, "low-rank factors"),
    (
        {"methods": ["dpo+ref_sync"], "data_axes": {"regime": {"name": "semi_online", "every": 2, "refresh": 1}}},
        "both replace the reference",
    ),
    ({"spo": [False, {"text": "on_policy"}], "data_axes": {"regime": "online"}}, "the policy's own answers already"),
    ({"data_axes": {"relabel": "reward_augmented", "list_size": 3}}, "a goal belongs to a pair"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_makes_no_sense_is_refused_before_anything_is_made(store, change, said):
    with pytest.raises(InputError, match=said):
        spo_bench.run({**TINY, **change}, store / "refused", store=store / "store")


def test_an_unknown_domain_is_refused_before_any_training(store):
    with pytest.raises(InputError, match=r"unknown domain 'plant'.*\n.*\n.*did you mean 'plants'"):
        spo_bench.run({**TINY, "data_axes": {"holdout": "plant"}, "seeds": [7]}, store / "domain", store=store / "store")
    assert not (store / "domain").exists()
