"""Losses against values derived by hand, limits, finite differences; and the registry that finds them."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spo_bench.errors import InputError
from spo_bench.methods import SFT, Method, Pairs, discover, get_method, method_names, pair_loss, resolve
from spo_bench.methods.dpo import METHOD as DPO
from spo_bench.methods.orpo import log_odds

settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

BUILT_IN = ["dpo", "ipo", "kto", "orpo", "simpo"]  # the others have test files of their own

ALL = [
    "dpo",
    "cdpo",
    "robust",
    "ipo",
    "hinge",
    "slic",
    "kto",
    "simpo",
    "orpo",
    "cpo",
    "exo",
    "nca",
    "bco",
    "apo_zero",
    "apo_down",
    "sppo_hard",
    "aot",
    "dpop",
    "lrml",
    "ada_dpo",
    "rpo",
    "wpo",
    "f_dpo",
    "beta_dpo",
    "alpha_dpo",
    "dpo_norm",
    "margin_dpo",
    "neural_ndcg",
]


def tensor(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# One pair used throughout: s_w = -10, s_l = -14, r_w = -11, r_l = -12, |y_w| = 5, |y_l| = 8.
# So u_w = 1, u_l = -2, u_w - u_l = 3; per token s_w/|y_w| = -2, s_l/|y_l| = -1.75, u_w/|y_w| = .2, u_l/|y_l| = -.25.
PAIR = (tensor(-10.0), tensor(-14.0), tensor(-11.0), tensor(-12.0), tensor(5.0), tensor(8.0))


def test_dpo_by_hand():
    """z = .5 * 3 = 1.5; -log sigmoid(1.5) = log(1 + e^-1.5)."""
    assert pair_loss("dpo", *PAIR, beta=0.5).item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-12)


def test_ipo_mean_by_hand():
    """Per-token difference .2 - (-.25) = .45; target 1 / (2 * .5) = 1; (.45 - 1)^2 = .3025."""
    assert pair_loss("ipo", *PAIR, beta=0.5).item() == pytest.approx(0.3025, rel=1e-12)


def test_ipo_sum_by_hand():
    """Summed difference 3; target 1; (3 - 1)^2 = 4."""
    assert pair_loss("ipo", *PAIR, beta=0.5, reduction="sum").item() == pytest.approx(4.0, rel=1e-12)


def test_simpo_by_hand():
    """2 * (-2 - (-1.75)) - .5 = -1; -log sigmoid(-1) = log(1 + e)."""
    assert pair_loss("simpo", *PAIR).item() == pytest.approx(math.log1p(math.e), rel=1e-12)


@pytest.mark.parametrize("z0", [0.0, 0.5])
def test_kto_by_hand(z0: float):
    """beta = 1: desirable 2 * (1 - sigmoid(1 - z0)), undesirable 3 * (1 - sigmoid(z0 + 2)), and their mean."""
    expected = (2 * (1 - sigmoid(1 - z0)) + 3 * (1 - sigmoid(z0 + 2))) / 2
    loss = pair_loss("kto", *PAIR, beta=1.0, lam_desirable=2.0, lam_undesirable=3.0, z0=z0)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_kto_takes_the_anchor_from_the_whole_batch():
    """Mismatched log-ratios 3 and -1 have mean 1 = z0 for both pairs; -3 and 1 have mean -1, clamped to 0."""
    kto, hyper = get_method("kto"), resolve("kto")
    both = [torch.cat([value, value]) for value in PAIR]
    for kl, z0 in (([3.0, -1.0], 1.0), ([-3.0, 1.0], 0.0)):
        pairs = Pairs(*both, kl=torch.tensor(kl, dtype=torch.float64))
        assert torch.equal(kto.loss(pairs, hyper), pair_loss("kto", *both, z0=z0))


def test_kto_gives_no_gradient_to_the_anchor():
    kl = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    policy = PAIR[0].clone().requires_grad_()
    get_method("kto").loss(Pairs(policy, *PAIR[1:], kl=kl), resolve("kto")).sum().backward()
    assert kl.grad is None
    assert policy.grad is not None


def test_orpo_by_hand():
    """Means -log 2 and -log 4: p = 1/2 and 1/4, odds 1 and 1/3, ratio 3; log 2 - .1 * log(3/4)."""
    loss = pair_loss("orpo", tensor(-3 * math.log(2)), tensor(-2 * math.log(4)), None, None, tensor(3.0), tensor(2.0))
    assert loss.item() == pytest.approx(math.log(2) - 0.1 * math.log(3 / 4), rel=1e-12)


@given(st.floats(min_value=1e-6, max_value=50))
def test_log_odds_in_fp32_keep_their_digits(distance: float):
    """log(p / (1 - p)) for log p = -d is -log(e^d - 1) = -log(expm1(d)), computed here in double precision."""
    mean = torch.tensor(-distance, dtype=torch.float32)
    exact = -math.log(math.expm1(-mean.item()))
    assert log_odds(mean).item() == pytest.approx(exact, rel=1e-5, abs=1e-5)


def test_orpo_of_a_certain_policy_is_finite():
    for dtype in (torch.float32, torch.float64):
        chosen, rejected = (
            torch.zeros(2, dtype=dtype, requires_grad=True),
            torch.full((2,), -1e-30, dtype=dtype, requires_grad=True),
        )
        loss = pair_loss("orpo", chosen, rejected, None, None, torch.ones(2), torch.ones(2))
        loss.sum().backward()
        for value in (loss, chosen.grad, rejected.grad):
            assert torch.isfinite(value).all()


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_for_large_ratios(name: str, dtype: torch.dtype):
    """Sums of -1e5 nats against -1, both ways: no overflow in the value or in its gradient."""
    chosen = torch.tensor([-1e5, -1.0, -300.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([-1.0, -1e5, -300.0], dtype=dtype, requires_grad=True)
    reference = torch.tensor([-300.0, -300.0, -300.0], dtype=dtype)
    loss = pair_loss(name, chosen, rejected, reference, reference, torch.tensor([40, 2, 40]), torch.tensor([2, 40, 40]))
    assert loss.shape == (3,)
    assert loss.dtype == dtype
    loss.sum().backward()
    for value in (loss, chosen.grad, rejected.grad):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    ("name", "hyper"),
    [(name, {}) for name in BUILT_IN] + [("ipo", {"reduction": "sum"}), ("kto", {"z0": 0.7, "lam_desirable": 1.3})],
)
def test_gradients_match_finite_differences(name: str, hyper: dict):
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 30, (2, 6), generator=random)
    logps = -lengths * (0.1 + 2 * torch.rand(2, 6, generator=random, dtype=torch.float64))
    reference = logps + torch.randn(2, 6, generator=random, dtype=torch.float64)

    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return pair_loss(name, chosen, rejected, reference[0], reference[1], lengths[0], lengths[1], **hyper)

    assert torch.autograd.gradcheck(loss, (logps[0].requires_grad_(), logps[1].requires_grad_()))


@pytest.mark.parametrize("name", BUILT_IN)
def test_direction(name: str):
    """One gradient step raises the method's own reward of the chosen answer over that of the rejected one."""
    chosen, rejected = PAIR[0].clone().requires_grad_(), PAIR[1].clone().requires_grad_()
    pair_loss(name, chosen, rejected, *PAIR[2:]).backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()
    method, hyper, kl = get_method(name), resolve(name), torch.zeros(1)
    before = method.rewards(Pairs(*PAIR, kl=kl), hyper)
    after = method.rewards(Pairs(PAIR[0] - chosen.grad, PAIR[1] - rejected.grad, *PAIR[2:], kl=kl), hyper)
    assert (after[0] - after[1] > before[0] - before[1]).all()


@pytest.mark.parametrize("name", BUILT_IN)
def test_at_start_is_the_loss_where_policy_and_reference_agree(name: str):
    """dpo log 2; ipo (1 / (2 beta))^2 = 25; kto (1/2 + 1/2) / 2; simpo and orpo depend on the pair."""
    constant = {"dpo": math.log(2), "ipo": 25.0, "kto": 0.5}.get(name)
    at_start = get_method(name).at_start
    if constant is None:
        assert at_start is None
        return
    loss = pair_loss(name, PAIR[0], PAIR[1], PAIR[0], PAIR[1], PAIR[4], PAIR[5])
    assert at_start(resolve(name)) == pytest.approx(constant)
    assert loss.item() == pytest.approx(constant)


def test_kto_at_start_follows_the_weights():
    """lam_desirable 2 and lam_undesirable 1: (2 * .5 + 1 * .5) / 2 = .75."""
    assert get_method("kto").at_start(resolve("kto", {"lam_desirable": 2})) == pytest.approx(0.75)


@pytest.mark.parametrize("name", BUILT_IN)
def test_batch_rows_are_independent(name: str):
    """With z0 given, the loss of two pairs together is the loss of each alone."""
    other = tuple(value * 1.5 for value in PAIR)
    together = pair_loss(name, *(torch.cat([a, b]) for a, b in zip(PAIR, other)))
    assert torch.allclose(together, torch.cat([pair_loss(name, *PAIR), pair_loss(name, *other)]))


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_reference_free_methods_ignore_the_reference(name: str):
    assert torch.equal(pair_loss(name, *PAIR), pair_loss(name, PAIR[0], PAIR[1], None, None, PAIR[4], PAIR[5]))


def test_declarations_are_complete():
    for name in BUILT_IN:
        method = get_method(name)
        assert method.name == name
        assert method.formula
        assert method.reference
        assert all(default.source for default in method.defaults.values())
        assert resolve(name) == {key: default.value for key, default in method.defaults.items()}
    assert get_method("kto").needs_kl
    assert get_method("kto").batch_coupled


def test_names_need_no_torch():
    """The checker of a spec asks for names and hyperparameters only, and should not wait seconds for torch."""
    code = "import sys, spo_bench.methods as m; m.method_names(); m.resolve('ipo'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_resolve_gives_one_value_for_one_meaning():
    assert resolve("dpo", {"beta": 1}) == {"beta": 1.0}
    assert isinstance(resolve("dpo", {"beta": 1})["beta"], float)


@pytest.mark.parametrize(
    ("name", "hyper", "said"),
    [
        ("dppo", {}, ["dppo", "did you mean 'dpo'"]),
        ("sft", {}, ["unknown method 'sft'"]),
        ("dpo", {"betta": 1.0}, ["betta", "method dpo", "did you mean 'beta'"]),
        ("dpo", {"beta": float("nan")}, ["beta = nan", "finite"]),
        ("dpo", {"beta": float("inf")}, ["beta = inf", "finite"]),
        ("dpo", {"beta": 10**400}, ["beta", "finite"]),
        ("dpo", {"beta": "0.1"}, ["beta = '0.1'", "number"]),
        ("dpo", {"beta": True}, ["beta = True", "number"]),
        ("dpo", {"beta": None}, ["beta = None", "number"]),
        ("dpo", {"beta": 0}, ["above 0"]),
        ("simpo", {"gamma": -0.1}, ["gamma", "at least 0"]),
        ("ipo", {"reduction": "max"}, ["one of mean, sum"]),
        ("ipo", {"reduction": ["mean"]}, ["one of mean, sum"]),
        ("kto", {"lam_desirable": -1}, ["lam_desirable", "above 0"]),
        ("kto", {"z0": 1.0}, ["z0"]),  # an input of pair_loss, not a hyperparameter of a run
    ],
)
def test_bad_hyperparameters(name: str, hyper: dict, said: list[str]):
    with pytest.raises(InputError) as caught:
        resolve(name, hyper)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reference_chosen": None}, "reference_chosen"),
        ({"policy_rejected": tensor(1.0, 2.0)}, "policy_rejected"),
        ({"policy_chosen": torch.tensor([-10])}, "floating point"),
        ({"chosen_length": tensor(0.0)}, "at least 1 token"),
        ({"reference_rejected": -12.0}, "reference_rejected"),
    ],
)
def test_bad_inputs(change: dict, said: str):
    keys = ["policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected", "chosen_length", "rejected_length"]
    with pytest.raises(InputError, match=said):
        pair_loss("dpo", **(dict(zip(keys, PAIR)) | change))


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Install a module of methods as entry points, as another distribution would."""

    def install(**sources: str) -> None:
        points = []
        for name, source in sources.items():
            (tmp_path / f"plugin_{name}.py").write_text(source)
            points.append(EntryPoint(name, f"plugin_{name}:METHOD", "spo_bench.methods"))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr("spo_bench.methods.registry.entry_points", lambda group: points)
        discover.cache_clear()

    yield install
    monkeypatch.undo()
    discover.cache_clear()
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]


RENAMED = "import dataclasses\nfrom spo_bench.methods.dpo import METHOD\nMETHOD = dataclasses.replace(METHOD, name={!r})\n"


def test_a_plugin_is_a_method_like_any_other(plugins):
    plugins(mine=RENAMED.format("mine"))
    assert method_names() == sorted([*ALL, "mine"])
    assert torch.equal(pair_loss("mine", *PAIR, beta=0.2), pair_loss("dpo", *PAIR, beta=0.2))


def test_two_methods_of_one_name_are_an_error_naming_both(plugins):
    plugins(mine=RENAMED.format("dpo"))
    with pytest.raises(InputError, match=r"'dpo': spo_bench\.methods\.dpo and entry point mine = plugin_mine:METHOD"):
        method_names()


def test_a_broken_plugin_is_named_and_stops_no_other(plugins):
    plugins(ruined="raise RuntimeError('no such luck')\n")
    assert method_names() == sorted(ALL)
    with pytest.raises(InputError, match=r"(?s)entry point ruined.*no such luck"):
        get_method("ruined")


@pytest.mark.parametrize("source", ["METHOD = 3\n", RENAMED.format(SFT), RENAMED.format("Not A Name")])
def test_a_plugin_must_give_a_method_with_a_free_name(plugins, source: str):
    plugins(odd=source)
    with pytest.raises(InputError, match="entry point odd"):
        method_names()


def test_check_sees_the_hyperparameters_together(plugins, monkeypatch: pytest.MonkeyPatch):
    def check(hyper) -> None:
        if hyper["beta"] > 1:
            raise ValueError("beta is at most 1 here")

    strict: Method = dataclasses.replace(DPO, check=check)
    monkeypatch.setattr("spo_bench.methods.dpo.METHOD", strict)
    discover.cache_clear()
    assert resolve("dpo", {"beta": 1.0}) == {"beta": 1.0}
    with pytest.raises(InputError, match="beta is at most 1 here"):
        resolve("dpo", {"beta": 2.0})
