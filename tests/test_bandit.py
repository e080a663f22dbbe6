"""The bandit benchmark: its setting by hand, its arms against the methods' losses, and the findings it is there to show."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spo_bench.errors import InputError
from spo_bench.methods import pair_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
bandit, training = (importlib.import_module(name) for name in ("bandit", "bandit_training"))
sys.path.pop(0)

SEEDS = range(10)
MISALIGNED, ALIGNED = (training.Reward(alignment, 10) for alignment in ("misaligned", "aligned"))
SMALL = replace(training.ON_POLICY, rounds=10)


@pytest.fixture(scope="module")
def histories() -> dict[tuple[str, str], object]:
    """Every arm under test in small regimes, on both rewards: (arm, regime) -> History."""
    regimes = {
        "on_policy": SMALL,
        "matched": replace(SMALL, on_policy=False),
        "offline": replace(training.OFFLINE, contexts=50, steps=100),
    }
    arms = ("dpo", "ipo", "pref_ft")
    return {
        (arm, name): training.train(arm, regime, [MISALIGNED, ALIGNED], SEEDS) for arm in arms for name, regime in regimes.items()
    }


def test_data_policy_by_hand():
    """The last bin is [.98, 1]: a Cauchy(-.7, .4) above atanh(.98), 1/2 - atan((atanh(.98) + .7) / .4) / pi = .0422."""
    chances = training.data_policy().double().exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-5)
    assert chances[-1].item() == pytest.approx(0.5 - math.atan((math.atanh(0.98) + 0.7) / 0.4) / math.pi, rel=1e-4)


def test_rewards_by_hand():
    """exp(-((80 - 70) / 10)^2) = 1/e; the peak is 1."""
    values = MISALIGNED.values()
    assert (values[70].item(), values[80].item()) == (1.0, pytest.approx(math.exp(-1)))
    assert ALIGNED.values().argmax() == 20


def test_the_policy_starts_as_the_reference():
    """At step 0 both KL and all log-ratios are 0, and the reward is that of the data policy."""
    history = training.train("dpo", replace(SMALL, rounds=1, steps=1), [MISALIGNED], [0])
    expected = (training.data_policy().exp() * MISALIGNED.values()).sum().item()
    assert history.steps[0] == 0
    assert history.curve("reward")[0].item() == pytest.approx(expected, rel=1e-5)
    for name in set(history.points) - {"reward", "entropy"}:
        assert history.curve(name)[0].item() == pytest.approx(0, abs=1e-5), name


def test_pairs_have_the_better_first_and_no_ties():
    """Ten draws 60, 60, 80, 80, 70, 0, ...: 60 and 80 have one reward, so of the 45 pairs those within a value are dropped.

    Values: 70 -> 1 (1 draw), 60 and 80 -> 1/e (4 draws), the other five are 0 to rounding. Across values: 1*4 + 1*5 + 4*5 = 29 pairs.
    """
    drawn = torch.tensor([60, 60, 80, 80, 70, 0, 1, 2, 3, 4])
    flat = torch.full((1, 1, 100), -math.log(100))
    batch = training.draw(flat, ((drawn + 0.5) / 100)[None, None], MISALIGNED.values()[None], training.data_policy(), 0.0)
    better, worse = batch.scores
    kept = batch.weight > 0
    assert kept.sum() == 29
    assert bool((better[kept] > worse[kept]).all())
    assert batch.weight.sum().item() == pytest.approx(1)
    assert batch.actions[0, 0, 0] == 70
    wide = training.draw(flat, ((drawn + 0.5) / 100)[None, None], MISALIGNED.values()[None], training.data_policy(), 0.5)
    assert (wide.weight > 0).sum() == 1 * 4 + 1 * 5  # 1/e - 0 < .5


def test_losses_are_the_methods_own():
    """At the start IPO is (0 - 10)^2 = 100 and DPO log 2; elsewhere the mean of pair_loss over the kept pairs."""
    generator = torch.Generator().manual_seed(0)
    reference, rewards = training.data_policy(), MISALIGNED.values()[None]
    batch = training.draw(reference.expand(1, 20, 100), torch.rand(1, 20, 10, generator=generator), rewards, reference, 0.2)
    assert training.loss_of("ipo", batch, reference.expand(1, 20, 100), 0).item() == pytest.approx(100, rel=1e-4)
    assert training.loss_of("dpo", batch, reference.expand(1, 20, 100), 0).item() == pytest.approx(math.log(2), rel=1e-4)
    log_probs = torch.randn(1, 20, 100, generator=generator).log_softmax(-1)
    for name in ("dpo", "simpo", "orpo"):
        losses = []
        for context in range(20):
            actions = batch.actions[0, context]
            for i in range(10):
                for j in range(i + 1, 10):
                    if rewards[0, actions[i]] - rewards[0, actions[j]] >= 0.2:
                        sides = [table[actions[k]][None] for table in (log_probs[0, context], reference) for k in (i, j)]
                        losses.append(pair_loss(name, *sides, torch.ones(1), torch.ones(1)).item())
        assert training.loss_of(name, batch, log_probs, 0).item() == pytest.approx(np.mean(losses), rel=1e-4), name


def test_log_ratios_of_data_pairs_are_exact():
    """Against the double sum over all (winner, loser) the data policy can draw, weighted with both chances."""
    reference, values = training.data_policy(), MISALIGNED.values()
    wins, losses = training.data_pairs(values[None], reference)
    ratio = np.random.default_rng(0).normal(size=100)
    chance = reference.double().exp().numpy()
    pairs = np.outer(chance, chance) * (values.numpy()[:, None] > values.numpy()[None, :] + 1e-6)
    assert float(wins[0] @ torch.tensor(ratio).float()) == pytest.approx((pairs * ratio[:, None]).sum() / pairs.sum(), rel=1e-4)
    assert float(losses[0] @ torch.tensor(ratio).float()) == pytest.approx((pairs * ratio[None, :]).sum() / pairs.sum(), rel=1e-4)


def test_a_run_does_not_see_the_others():
    """Seed 1 alone, and as one of two seeds and two rewards; and the same call twice gives the same bits."""
    regime = replace(SMALL, rounds=2)
    alone = training.train("dpo", regime, [MISALIGNED], [1]).curve("reward")[:, 0, 0]
    many = [training.train("dpo", regime, [ALIGNED, MISALIGNED], [0, 1]).curve("reward") for _ in range(2)]
    assert np.array_equal(many[0], many[1])
    np.testing.assert_allclose(many[0][:, 1, 1], alone, rtol=1e-3)


def test_averages_and_first_times_by_hand():
    """Rewards .5, .9, .7 at steps 0, 1, 4: (.7 * 1 + .8 * 3) / 4 = .775, over the first quarter .7; .8 is reached at step 1."""
    history = training.History([0, 1, 4], {"reward": [np.array([[value]]) for value in (0.5, 0.9, 0.7)]})
    assert history.average().item() == pytest.approx(0.775)
    assert history.average(0.25).item() == pytest.approx(0.7)
    assert history.reached().item() == 1
    assert math.isinf(training.History([0, 1], {"reward": [np.array([[0.1]])] * 2}).reached().item())


def test_levels_of_equal_and_of_missing_values():
    """Seeds that all agree have an interval of no width, also at 0 and 1; one seed without a value leaves no level."""
    assert bandit.level(np.zeros(5)) == (0, 0, 0)
    assert bandit.level(np.array([0.1, math.nan])) is None


def test_misaligned_on_policy_data_beat_the_data_policys(histories):
    """Same contexts, samples, steps and rate. DPO is left out: it gets there with the data policy's samples too."""
    for arm in ("ipo", "pref_ft"):
        own, given = (histories[arm, name].final()[0] for name in ("on_policy", "matched"))
        assert own.mean() > given.mean() + 0.1, arm


def test_misaligned_a_negative_gradient_rises_before_pref_ft(histories):
    for regime in ("on_policy", "matched"):
        for arm in ("dpo", "ipo"):
            rise, other = (histories[name, regime].average()[0].mean() for name in (arm, "pref_ft"))
            assert rise > other + 0.05, (arm, regime)


def test_aligned_the_gap_is_smaller(histories):
    for arm in ("ipo", "pref_ft"):
        gaps = histories[arm, "on_policy"].average() - histories[arm, "matched"].average()
        assert gaps[0].mean() > gaps[1].mean() + 0.1, arm
    for arm in ("dpo", "ipo"):
        assert histories[arm, "matched"].final()[1].mean() > 0.9, arm


def test_offline_log_ratios(histories):
    """DPO lowers losers and winners. Pref-FT raises winners; losers fall, as probability is conserved over one-token answers."""
    ends = {
        arm: [histories[arm, "offline"].final(f"{side}_logratio") for side in ("chosen", "rejected")]
        for arm in ("dpo", "pref_ft")
    }
    assert (ends["dpo"][0].mean(-1) < -1).all()
    assert (ends["dpo"][1] < ends["dpo"][0] - 1).all()
    assert (ends["pref_ft"][0] > 0.5).all()
    assert (ends["pref_ft"][1] < -0.5).all()


def test_methods_that_read_more_than_a_pair_are_refused():
    with pytest.raises(InputError, match="more of a batch"):
        training.usable("kto")


@pytest.mark.parametrize("given", [["--methods", "kto"], ["--methods", "dop"], ["--seeds", "1"], ["--widths", "0"]])
def test_bad_input_ends_with_2(given: list[str], monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bandit.py", *given])
    with pytest.raises(SystemExit) as ended:
        bandit.main()
    assert ended.value.code == 2
    assert "rule:" in capsys.readouterr().err


@pytest.fixture
def threads():
    """The command takes one thread for its whole process, which here has other tests to run."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_command_writes_its_files(tmp_path: Path, monkeypatch, capsys):
    """A quick run: JSON without NaN that holds every arm, regime and reward, tables that it prints, and both pictures."""
    monkeypatch.setattr(sys, "argv", ["bandit.py", "--quick", "--methods", "simpo", "--seeds", "2", "--out", str(tmp_path)])
    bandit.main()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in JSON")

    found = json.loads((tmp_path / "bandit.json").read_text(), parse_constant=refuse)
    assert {(line["arm"], line["regime"], line["alignment"]) for line in found["lines"]} == {
        (arm, regime, alignment)
        for arm in ("simpo", "pref_ft", "best_of_n")
        for regime in ("offline", "matched", "on_policy")
        for alignment in ("misaligned", "aligned")
    }
    for line in found["lines"]:
        assert len(line["curves"]["reward"]) == len(line["steps"])
        assert len(line["curves"]["reward"][0]) == 2
    assert {one["verdict"] for one in found["findings"]} <= {"reproduced", "partly", "not reproduced"}
    assert (tmp_path / "bandit.md").read_text().strip() == capsys.readouterr().out.strip()
    assert (tmp_path / "bandit.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "bandit.svg").read_bytes()


def test_labels_are_moved_apart():
    """Four lines that end at one height: labels at least .1 apart, in order, within the panel."""
    placed = bandit._spread([0.95, 0.95, 0.96, 0.97], 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(placed))
    assert max(placed) <= 1
