"""On-policy data and negative gradients on a bandit: the findings of Tajwar et al. (2024), without a GPU, within a minute.

Usage: python benchmarks/bandit.py [--out results/bandit] [--methods dpo ipo simpo orpo] [--seeds 16] [--widths 10] [--quick]

Every method that compares one pair at a time can be an arm, with its own loss; `pref_ft` (likelihood of the winner) and
`best_of_n` (likelihood of the best sample) are the arms without a negative gradient. Regimes: `offline`, as published;
`on_policy`; `matched`, which differs from `on_policy` in that the data policy draws the actions, and in nothing else. Writes
bandit.json (every curve), bandit.md, bandit.png and bandit.svg.

After arXiv 2404.14367 and its released scripts. Ours: a network with one hidden layer; a policy that starts exactly at the data
policy, which is the reference; one learning rate for all arms; Pref-FT, on the pairs the losses see; the regime `matched`; 16
seeds instead of 5, because on-policy runs differ much (some stop on an action far from the peak).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bandit_training import (
    ALSO,
    BEST_OF_N,
    CENTRES,
    HIDDEN,
    HYPERPARAMETERS,
    MAIN,
    PREF_FT,
    REACHED,
    Floats,
    History,
    Regime,
    Reward,
    train,
    usable,
)

from spo_bench.errors import InputError
from spo_bench.files import write_text
from spo_bench.methods import resolve
from spo_bench.stats.resample import bootstrap

EARLY = 0.1
STROKES = ("-", "-.", (0, (5, 1.5)), (0, (8, 2, 2, 2)))  # arms without a negative gradient are dotted


@dataclass(frozen=True)
class Outcome:
    """Every arm's history in every regime, and which rewards a regime was run on."""

    arms: Sequence[str]
    seeds: Sequence[int]
    histories: Mapping[tuple[str, str], History]
    rewards: Mapping[str, Sequence[Reward]]
    regimes: Mapping[str, Regime]

    @property
    def width(self) -> float:
        """The width everything is reported at: the narrowest."""
        return min(reward.width for reward in self.rewards["on_policy"])

    def at(self, arm: str, regime: str, alignment: str = "misaligned", width: float | None = None) -> tuple[History, int]:
        """Return the history and the place of that reward in it."""
        return self.histories[arm, regime], list(self.rewards[regime]).index(
            Reward(alignment, self.width if width is None else width)
        )

    def final(self, arm: str, regime: str, alignment: str, metric: str = "reward", width: float | None = None) -> Floats:
        """Return a metric at the end, (seeds,)."""
        history, place = self.at(arm, regime, alignment, width)
        return np.asarray(history.final(metric)[place])

    def average(self, arm: str, regime: str, alignment: str, share: float = 1.0) -> Floats:
        """Return the reward averaged over the first ``share`` of training, (seeds,)."""
        history, place = self.at(arm, regime, alignment)
        return np.asarray(history.average(share)[place])

    def reached(self, arm: str, regime: str, alignment: str = "misaligned") -> float:
        """Return the median over seeds of the steps to a reward of ``REACHED``, infinity where half of them never get there."""
        history, place = self.at(arm, regime, alignment)
        return float(np.quantile(history.reached()[place], 0.5, method="higher"))

    def gap(self, arm: str, alignment: str) -> Floats:
        """Return what drawing on-policy adds to the reward averaged over training, all else the same, (seeds,)."""
        return self.average(arm, "on_policy", alignment) - self.average(arm, "matched", alignment)


def level(values: Floats) -> tuple[float, float, float] | None:
    """Return (mean, low, high), 95 % over seeds; None where a seed has no value."""
    if not np.isfinite(values).all():
        return None
    mean, low, high = bootstrap(np.asarray(values, dtype=np.float64), np.ones(len(values)), 0.95)
    return mean, low, high


def findings(out: Outcome) -> list[dict[str, Any]]:
    """Return the published findings and what was measured; a measurement agrees if its interval lies on the claimed side of 0."""
    methods = [arm for arm in out.arms if arm not in (PREF_FT, BEST_OF_N)]
    both = [(arm, alignment) for arm in methods for alignment in CENTRES]

    def end(arm: str, alignment: str, side: str) -> Floats:
        return out.final(arm, "offline", alignment, f"{side}_logratio")

    def early(arm: str, regime: str) -> Floats:
        return out.average(arm, regime, "misaligned", EARLY)

    def last(arm: str, regime: str) -> Floats:
        return out.final(arm, regime, "misaligned")

    claims: list[tuple[str, str, int, dict[str, Floats]]] = [
        (
            "misaligned: on-policy data beat offline data (final reward, on_policy - offline)",
            "all",
            1,
            {arm: last(arm, "on_policy") - last(arm, "offline") for arm in out.arms},
        ),
        (
            "misaligned: so they do with as many samples and steps (reward averaged over training, on_policy - matched)",
            "all",
            1,
            {arm: out.gap(arm, "misaligned") for arm in out.arms},
        ),
        *(
            (
                f"misaligned, {regime}: a negative gradient {what} {rival} (reward {when})",
                "all",
                1,
                {arm: value(arm, regime) - value(rival, regime) for arm in methods},
            )
            for regime in ("on_policy", "matched")
            for what, when, value in (
                ("rises before", f"averaged over the first {EARLY:.0%} of steps", early),
                ("ends above", "at the end", last),
            )
            for rival in (PREF_FT, BEST_OF_N)
        ),
        (
            "aligned: on-policy data matter less (what they add, misaligned - aligned)",
            "all",
            1,
            {arm: out.gap(arm, "misaligned") - out.gap(arm, "aligned") for arm in out.arms},
        ),
        (
            "offline: a negative gradient lowers the losers (u_l, training pairs)",
            "all",
            -1,
            {f"{arm} {alignment}": end(arm, alignment, "rejected") for arm, alignment in both},
        ),
        (
            "offline: it may lower the winners too (u_w, training pairs)",
            "any",
            -1,
            {f"{arm} {alignment}": end(arm, alignment, "chosen") for arm, alignment in both},
        ),
        *(
            (
                f"offline: Pref-FT raises the {who} ({symbol}, training pairs)",
                "all",
                1,
                {f"{PREF_FT} {alignment}": end(PREF_FT, alignment, side) for alignment in CENTRES},
            )
            for who, symbol, side in (("winners", "u_w", "chosen"), ("losers", "u_l", "rejected"))
        ),
    ]
    found = []
    for claim, rule, sign, measured in claims:
        levels = {name: level(values) for name, values in measured.items()}
        agree = [name for name, one in levels.items() if one and (one[1] > 0 if sign > 0 else one[2] < 0)]
        complete = len(agree) == len(levels) or (rule == "any" and agree)
        verdict = "reproduced" if complete else "partly" if agree else "not reproduced"
        found.append({"claim": claim, "verdict": verdict, "agree": len(agree), "of": len(levels), "measured": levels})
    return found


def run(
    arms: Sequence[str],
    seeds: Sequence[int],
    widths: Sequence[float],
    regimes: Mapping[str, Regime],
    also: Mapping[str, Regime],
    hidden: int,
) -> Outcome:
    """Train every arm in every regime; those of ``also`` on the narrowest misaligned reward only."""
    wide = [Reward(alignment, width) for alignment in CENTRES for width in widths]
    narrow = [Reward("misaligned", min(widths))]
    rewards = {**dict.fromkeys(regimes, wide), **dict.fromkeys(also, narrow)}
    every = {**regimes, **also}
    histories = {(arm, name): train(arm, regime, rewards[name], seeds, hidden) for arm in arms for name, regime in every.items()}
    return Outcome(arms, seeds, histories, rewards, every)


def as_json(out: Outcome) -> dict[str, Any]:
    """Return everything measured: per arm, regime and reward the curves of each seed (null where there is no value)."""

    def plain(values: Floats) -> list[Any]:
        return [[float(f"{v:.5g}") if math.isfinite(v) else None for v in point] for point in values]

    lines = []
    for (arm, name), history in out.histories.items():
        for place, reward in enumerate(out.rewards[name]):
            curves = {metric: plain(history.curve(metric)[:, place]) for metric in history.points}
            ends = {metric: level(history.final(metric)[place]) for metric in history.points}
            steps = [float(step) if math.isfinite(step) else None for step in history.reached()[place]]
            lines.append(
                {"arm": arm, "regime": name, **asdict(reward), "final": ends, "average_reward": level(history.average()[place])}
                | {f"steps_to_{REACHED}": steps, "steps": history.steps, "curves": curves}
            )
    return {
        "seeds": list(out.seeds),
        "hyperparameters": {arm: resolve(arm, HYPERPARAMETERS.get(arm)) for arm in out.arms if arm not in (PREF_FT, BEST_OF_N)},
        "regimes": {name: asdict(regime) for name, regime in out.regimes.items()},
        "findings": findings(out),
        "lines": lines,
    }


def _cell(one: tuple[float, float, float] | None) -> str:
    return "–" if one is None else "{:.2f} [{:.2f}, {:.2f}]".format(*one).replace("-", "−")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> str:
    rule = ["---", *["---" if words else "---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


def as_markdown(out: Outcome, heading: str) -> str:
    """Return the tables: reward, speed, where the mass went, reuse and learning rate, widths, findings."""
    main = [name for name in MAIN if name in out.regimes]
    pairs = [(alignment, name) for alignment in CENTRES for name in main]

    def steps(arm: str, name: str, alignment: str) -> str:
        value = out.reached(arm, name, alignment)
        history, place = out.at(arm, name, alignment)
        there = int(np.isfinite(history.reached()[place]).sum())
        return (f"{value:.0f}" if math.isfinite(value) else "–") + f" ({there} of {len(out.seeds)})"

    def mean(arm: str, name: str, metric: str) -> str:
        value = float(out.final(arm, name, "misaligned", metric).mean())
        return f"{value:.1f}".replace("-", "−") if math.isfinite(value) else "–"

    parts = [heading, "Reward at the end, mean over seeds and 95 % interval:\n"]
    rows = [[arm, *(_cell(level(out.final(arm, name, alignment))) for alignment, name in pairs)] for arm in out.arms]
    parts.append(_table(["arm", *(f"{alignment}, {name}" for alignment, name in pairs)], rows))
    parts.append(f"Steps to a reward of {REACHED}, median over seeds, – if half never reach it (seeds that do):\n")
    rows = [[arm, *(steps(arm, name, alignment) for alignment, name in pairs)] for arm in out.arms]
    parts.append(_table(["arm", *(f"{alignment}, {name}" for alignment, name in pairs)], rows))
    parts.append(
        "Where the probability went at the end, misaligned, nats (– : a seed has no pair left, all samples are one action):\n"
    )
    metrics = {
        "kl_policy_ref": "KL(π‖ref)",
        "kl_ref_policy": "KL(ref‖π)",
        "entropy": "entropy",
        "chosen_logratio": "u_w",
        "rejected_logratio": "u_l",
        "data_chosen_logratio": "u_w, data",
        "data_rejected_logratio": "u_l, data",
    }
    rows = [[f"{arm}, {name}", *(mean(arm, name, metric) for metric in metrics)] for name in main for arm in out.arms]
    parts.append(_table(["arm, regime", *metrics.values()], rows))
    also = ["on_policy", *(name for name in out.regimes if name not in MAIN)]
    if len(also) > 1:
        parts.append("On-policy with other reuse or learning rate, misaligned: reward at the end (rounds to 0.8, median):\n")
        rows = []
        for arm in out.arms:
            cells = []
            for name in also:
                rounds = math.ceil(value / out.regimes[name].steps) if math.isfinite(value := out.reached(arm, name)) else "–"
                cells.append(f"{_cell(level(out.final(arm, name, 'misaligned')))} ({rounds})")
            rows.append([arm, *cells])
        shown = [f"reuse {out.regimes[name].steps}, rate {out.regimes[name].rate:g}" for name in also]
        parts.append(_table(["arm", *shown], rows))
    widths = sorted({reward.width for reward in out.rewards["on_policy"]})
    if len(widths) > 1:
        parts.append("Reward at the end by width, misaligned:\n")
        rows = [
            [arm, *(f"{out.final(arm, name, 'misaligned', width=width).mean():.2f}" for name in main for width in widths)]
            for arm in out.arms
        ]
        parts.append(_table(["arm", *(f"{name}, {width:g}" for name in main for width in widths)], rows))
    parts.append("Published findings (agree: the 95 % interval over seeds, uncorrected, lies on the claimed side of 0):\n")
    rows = []
    for one in findings(out):
        measured = "; ".join(f"{name} {_cell(value)}" for name, value in one["measured"].items())
        rows.append([one["claim"], one["verdict"], f"{one['agree']} of {one['of']}", measured])
    parts.append(_table(["finding", "verdict", "agree", "measured"], rows, words=True))
    return "\n".join(parts)


def figure(out: Outcome) -> tuple[bytes, bytes]:
    """Draw the outcome, 2 x 2, and return it as (png, svg)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from spo_bench.report.figures import COLOURS, MARKERS, STYLE

    looks = {arm: (COLOURS[i % 6], STROKES[i % 4]) for i, arm in enumerate(out.arms)}
    looks[PREF_FT], looks[BEST_OF_N] = ("#20242a", (0, (1, 1.2))), ("#8a8f98", (0, (1, 1.2)))
    rows = np.arange(len(out.arms))
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(7.4, 6.0), layout="constrained")
        panels = drawing.subplots(2, 2)
        for panel, name, title in zip(
            panels[0], ("matched", "on_policy"), ("Misaligned: the data policy draws", "Misaligned: the policy draws")
        ):
            ends = {}
            for arm, (colour, line) in looks.items():
                history, place = out.at(arm, name)
                means = history.curve("reward")[:, place].mean(-1)
                panel.plot(history.steps[1:], means[1:], color=colour, linestyle=line, linewidth=1.7, label=arm)
                ends[arm] = float(means[-1])
            panel.set(xscale="log", ylim=(0, 1.03), xlim=(1, history.steps[-1]), xlabel="Step", ylabel="True reward", title=title)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(axis="y")
            if name == "matched":
                order = sorted(ends, key=lambda arm: ends[arm])
                for height, arm in zip(_spread([ends[arm] for arm in order], 0.07), order):
                    where = panel.get_yaxis_transform()
                    panel.text(1.02, height, arm, color=looks[arm][0], transform=where, va="center", fontsize=8.5)
        panels[0][1].legend(loc="lower right", fontsize=8, handlelength=3)
        third, fourth = panels[1]
        for alignment, shift, fill in (("misaligned", -0.13, COLOURS[1]), ("aligned", 0.13, "white")):
            means, low, high = _levels([out.gap(arm, alignment) for arm in out.arms])
            look = {"color": COLOURS[1 if shift < 0 else 0], "markerfacecolor": fill, "marker": MARKERS[1 if shift < 0 else 0]}
            reach = np.stack([means - low, high - means])
            third.errorbar(
                means, rows + shift, xerr=reach, ls="none", ms=5.5, capsize=2.5, elinewidth=1.3, label=alignment, **look
            )
        third.set(xlabel="Δ reward averaged over training", title="What drawing on-policy adds")
        for side, mark, fill, label in (("chosen", "^", COLOURS[2], "winners"), ("rejected", "v", "white", "losers")):
            sides = [out.final(arm, "offline", "misaligned", f"{side}_logratio") for arm in out.arms]
            means, low, high = _levels(sides)
            reach = np.stack([means - low, high - means])
            look = {"color": COLOURS[2], "markerfacecolor": fill, "marker": mark, "label": label}
            fourth.errorbar(means, rows, xerr=reach, ls="none", ms=6.5, capsize=2.5, elinewidth=1.3, **look)
        fourth.set_xscale("symlog", linthresh=10)
        fourth.xaxis.set_major_formatter("{x:g}")
        fourth.set(xlabel="Log-ratio to the reference, nats", title="Misaligned, offline: training pairs")
        for panel in (third, fourth):
            panel.axvline(0, color="#20242a", linewidth=0.9, zorder=1)
            panel.set_yticks(rows, list(out.arms))
            panel.set_ylim(len(out.arms) - 0.4, -0.6)
            panel.tick_params(axis="y", length=0)
            panel.grid(axis="x")
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=8)
        png, svg = io.BytesIO(), io.BytesIO()
        drawing.savefig(png, format="png", dpi=150, metadata={"Software": None})
        drawing.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()


def _levels(values: Sequence[Floats]) -> Floats:
    """Return means, lows and highs, (3, len(values)), NaN where there is no level."""
    return np.array([level(one) or (math.nan, math.nan, math.nan) for one in values]).T


def _spread(heights: Sequence[float], least: float) -> list[float]:
    """Return rising heights moved apart to at least that distance, each near its own place."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + least) if placed else max(height, 0.02))
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], 1.0 if i == len(placed) - 1 else placed[i + 1] - least)
    return placed


def main() -> None:
    """Run, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/bandit"), help="directory of the four files")
    parser.add_argument("--methods", nargs="+", help="methods besides pref_ft and best_of_n (default: dpo ipo simpo orpo)")
    parser.add_argument("--seeds", type=int, help="seeds 0, 1, ... (default: 16)")
    parser.add_argument(
        "--widths", type=float, nargs="+", default=[10], help="of the reward; all but the narrowest only in one table"
    )
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="units of the policy's hidden layer (default: 32)")
    parser.add_argument(
        "--quick", action="store_true", help="dpo and ipo, 5 seeds, 30 rounds instead of 100, nothing on reuse and rates"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON instead of tables")
    wanted = parser.parse_args()
    methods = list(dict.fromkeys(wanted.methods or (["dpo", "ipo"] if wanted.quick else ["dpo", "ipo", "simpo", "orpo"])))
    seeds = range(wanted.seeds if wanted.seeds is not None else 5 if wanted.quick else 16)
    try:
        if len(seeds) < 2:
            raise InputError(f"--seeds {wanted.seeds}", "an interval over seeds needs at least 2", "give 2 or more")
        if wanted.hidden < 1:
            raise InputError(f"--hidden {wanted.hidden}", "the policy has at least 1 hidden unit", "give 1 or more, such as 32")
        for width in wanted.widths:
            if not 0 < width < math.inf:
                raise InputError(f"--widths {width:g}", "a width is a finite number above 0", "give it in actions, such as 10")
        for name in methods:
            usable(name)
    except InputError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    started = time.perf_counter()
    if wanted.quick:
        regimes = {name: replace(regime, rounds=min(regime.rounds, 30)) for name, regime in MAIN.items()}
        out = run([*methods, PREF_FT, BEST_OF_N], seeds, wanted.widths, regimes, {}, wanted.hidden)
    else:
        out = run([*methods, PREF_FT, BEST_OF_N], seeds, wanted.widths, MAIN, ALSO, wanted.hidden)
    seconds = time.perf_counter() - started
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    heading = f"# Bandit\n\nPython {versions['python']}, torch {versions['torch']}, {seconds:.0f} s on one core.\n\n"
    heading += f"{len(seeds)} seeds, width {out.width:g}, {wanted.hidden} hidden units.\n"
    result = {"versions": versions, "seconds": seconds, "hidden": wanted.hidden, **as_json(out)}
    text = as_markdown(out, heading)
    wanted.out.mkdir(parents=True, exist_ok=True)
    write_text(wanted.out / "bandit.json", json.dumps(result, allow_nan=False) + "\n")
    write_text(wanted.out / "bandit.md", text)
    png, svg = figure(out)
    (wanted.out / "bandit.png").write_bytes(png)
    (wanted.out / "bandit.svg").write_bytes(svg)
    if wanted.json:
        print(json.dumps({key: value for key, value in result.items() if key != "lines"}, indent=1))
    else:
        print(text)


if __name__ == "__main__":
    main()
