"""Figures of a run as png and svg: readable in black and white, the same bytes every time."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from . import names
from .areas import FRACTION
from .axes import equal_note, value_of
from .measure import ALPHA, Level, headlines
from .render import number
from .results import SFT, Cell, Results, short_model
from .tables import Numbers

STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so a figure looks the same everywhere
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#3c4149",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "text.color": "#20242a",
    "xtick.color": "#5b616b",
    "ytick.color": "#5b616b",
    "xtick.labelcolor": "#3c4149",
    "ytick.labelcolor": "#3c4149",
    "grid.color": "#e4e6ea",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "spo-bench",
    "svg.fonttype": "path",
}
BASELINE, SPO, QUIET = "#5b616b", "#b4472e", "#8a8f98"
COLOURS = (BASELINE, SPO, "#2f6690", "#7a5c99", "#3b7a57", "#b8860b")
MARKERS = ("o", "s", "D", "^", "v", "P")
LINES = ("--", "-", "-.", ":", (0, (5, 1)), (0, (1, 1)))


@dataclass(frozen=True)
class Drawing:
    """A finished figure: its file name without ending, what it shows, and its bytes."""

    name: str
    caption: str
    png: bytes
    svg: bytes


def draw(numbers: Numbers) -> list[Drawing]:
    """Draw every figure the run has data for."""
    results = numbers.results
    found = [_levels(numbers), _forest(numbers)]
    found += [_along(numbers, axis) for axis in ALONG if axis in results.axes]
    for model, task in dict.fromkeys((cell.model, cell.task) for cell in results.done):
        found.append(_curves(results, model, task))
    return [one for one in found if one is not None]


def _finish(name: str, caption: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Drawing:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
        figure.set_layout_engine("none")  # keep the places just found: finding them is half of the time
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Drawing(name, caption, png.getvalue(), svg.getvalue())


def _labels(cells: Sequence[Cell]) -> list[str]:
    """Return the variants' labels, the baseline's ("") first: their places choose colour, marker and line."""
    return sorted(dict.fromkeys(cell.label for cell in cells if cell.method != SFT), key=lambda label: label != "")


def _plain_families(cells: Sequence[Cell]) -> tuple[list[str], str]:
    """Return the families to show side by side, and a sentence: those of plain data alone where there are others too."""
    trained = [cell for cell in cells if cell.method != SFT]
    families = list(dict.fromkeys(cell.family for cell in trained))
    plain = list(dict.fromkeys(cell.family for cell in trained if not cell.axes))
    return (plain, " Only policies of plain data are shown.") if 0 < len(plain) < len(families) else (families, "")


def _name(label: str) -> str:
    return label or "baseline"


# --- levels: what every policy reaches ----------------------------------------------------------------------------------


CROWDED = 10  # methods; more leave no room for panels side by side


def _levels(numbers: Numbers) -> Drawing | None:
    results = numbers.results
    models = list(dict.fromkeys(cell.model for cell in results.done))
    panels = [(model, task, headlines(results, task)[:1]) for model in models for task in results.tasks]
    panels = [(model, task, metric) for model, task, metric in panels if metric]
    if not panels:
        return None
    labels = _labels(results.done)
    families, note = _plain_families(results.done)
    columns = min(3, len(panels)) if len(families) <= CROWDED else 1
    rows = math.ceil(len(panels) / columns)

    def paint(figure: Figure) -> None:
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for panel, (model, task, metrics) in zip(axes, panels):
            _level_panel(panel, numbers, model, task, metrics[0], families, labels)
            panel.set_title(task if len(models) == 1 else f"{short_model(model)} · {task}")
        for panel in axes[len(panels) :]:
            panel.set_axis_off()
        _legend(figure, axes[0])

    width = max(4.2, 0.55 * max(1, len(families)) * max(2, len(labels)) * 0.7 + 1.4) * columns
    caption = "What every policy reaches, with 95 % intervals. The dashed line is the SFT policy, the band its interval."
    return _finish("levels", caption + note, (min(13.0, width), 3.1 * rows + 0.4), paint)


def _level_panel(
    panel: Any, numbers: Numbers, model: str, task: str, metric: str, families: Sequence[str], labels: Sequence[str]
) -> None:
    factor = names.scale(metric)
    cells = [cell for cell in numbers.results.done if (cell.model, cell.task) == (model, task)]
    found = numbers.levels[metric]
    _sft_line(panel, numbers, cells, metric)
    step = 0.6 / max(2, len(labels))
    for place, label in enumerate(labels):
        points = []
        for at, family in enumerate(families):
            own = next((cell for cell in cells if cell.family == family and cell.label == label), None)
            level = found.get((*own.place, own.settings)) if own else None
            if level is not None and math.isfinite(level.value):
                points.append((at + step * (place - (len(labels) - 1) / 2), level.value, level.low, level.high))
        if points:
            x, y, low, high = (np.array(some) for some in zip(*points))
            reach = np.nan_to_num(factor * np.stack([y - low, high - y]))
            panel.errorbar(
                x,
                factor * y,
                yerr=reach,
                label=_name(label),
                color=COLOURS[place % 6],
                marker=MARKERS[place % 6],
                markerfacecolor="white" if not label else None,
                linestyle="none",
                markersize=6,
                markeredgewidth=1.3,
                elinewidth=1.3,
                capsize=2.5,
            )
    panel.set_xticks(range(len(families)), families)
    if sum(map(len, families)) > 45:
        panel.tick_params(axis="x", labelrotation=30)
    panel.set_xlim(-0.6, len(families) - 0.4)
    panel.set_ylabel(names.title(metric))
    panel.grid(axis="y")


def _sft_line(panel: Any, numbers: Numbers, cells: Sequence[Cell], metric: str) -> None:
    factor = names.scale(metric)
    sft = next((numbers.level(cell, metric) for cell in cells if cell.method == SFT), None)
    if sft is not None and math.isfinite(sft.value):
        panel.axhline(factor * sft.value, color=QUIET, linestyle=(0, (4, 3)), linewidth=1, label="SFT", zorder=1)
        panel.axhspan(factor * sft.low, factor * sft.high, color=QUIET, alpha=0.13, linewidth=0, zorder=0)


# --- along a data axis: what more data, or noisier labels, do -------------------------------------------------------------

ALONG = {FRACTION: "Share of the training pairs", "label_flip": "Share of preferences turned round"}
"""The data axes whose values are numbers on a scale, with what the scale says."""


_Lines = Mapping[tuple[str, str], Mapping[float, Level]]
"""(method with its other axes, variant) -> value of the axis -> level."""


def _along(numbers: Numbers, axis: str) -> Drawing | None:
    """Draw the headline metric against the values of a data axis, a line a method and variant; None below two values."""
    results = numbers.results
    panels: list[tuple[str, str, str, _Lines]] = []
    for model, task in dict.fromkeys((cell.model, cell.task) for cell in results.done):
        for metric in headlines(results, task)[:1]:
            if lines := _lines(numbers, axis, model, task, metric):
                panels.append((model, task, metric, lines))
    if not panels:
        return None
    families = list(dict.fromkeys(family for *_, lines in panels for family, _ in lines))
    labels = sorted(dict.fromkeys(label for *_, lines in panels for _, label in lines), key=lambda label: label != "")
    several = len({model for model, *_ in panels}) > 1
    columns = min(2, len(panels))
    longest = max(len(f"{family} {_name(label)}") for *_, lines in panels for family, label in lines)
    wide = max(1, 48 * columns // (longest + 10))  # names side by side in the legend
    rows = math.ceil(len(panels) / columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        named: dict[str, Any] = {}
        for panel, (model, task, metric, lines) in zip(grid, panels):
            _sft_line(panel, numbers, [cell for cell in results.done if (cell.model, cell.task) == (model, task)], metric)
            _along_panel(panel, metric, lines, families, labels)
            panel.set_xlabel(ALONG[axis])
            panel.set_title(f"{short_model(model)} · {task}" if several else task)
            handles, texts = panel.get_legend_handles_labels()
            named |= dict(zip(texts, handles))
        for panel in grid[len(panels) :]:
            panel.set_axis_off()
        figure.legend(named.values(), named, loc="outside lower center", ncols=wide, fontsize=8, handlelength=3)

    noise = "Label noise: what every policy reaches when a share of the preferences is turned round"
    what = "Data efficiency: what every policy reaches with a share of the training pairs" if axis == FRACTION else noise
    note = f" {equal_note(results)}" if axis == FRACTION else ""
    height = 2.6 * rows + 0.2 * math.ceil((len(families) * len(labels) + 1) / wide) + 0.2
    return _finish(f"axis-{axis}", f"{what}, with 95 % intervals.{note}", (3.4 * columns, height), paint)


def _lines(numbers: Numbers, axis: str, model: str, task: str, metric: str) -> _Lines:
    """Return the lines of a panel that have two or more points."""
    lines: dict[tuple[str, str], dict[float, Level]] = {}
    for cell in numbers.results.done:
        level = numbers.level(cell, metric) if (cell.model, cell.task) == (model, task) and cell.method != SFT else None
        if level is not None and math.isfinite(level.value):
            lines.setdefault((cell.without(axis), cell.label), {})[float(value_of(cell, axis))] = level
    return {key: points for key, points in lines.items() if len(points) > 1}


def _along_panel(panel: Any, metric: str, lines: _Lines, families: Sequence[str], labels: Sequence[str]) -> None:
    factor = names.scale(metric)
    values = np.array(sorted({value for points in lines.values() for value in points}))
    step = min(0.012 * np.ptp(values), 0.6 * np.diff(values).min() / len(lines))  # bars side by side: none hides another
    for at, ((family, label), points) in enumerate(lines.items()):
        x = np.array(sorted(points))
        y, low, high = (factor * np.array([getattr(points[one], key) for one in x]) for key in ("value", "low", "high"))
        i, j = families.index(family), labels.index(label)
        panel.errorbar(
            x + step * (at - (len(lines) - 1) / 2),
            y,
            yerr=np.nan_to_num(np.stack([y - low, high - y])),
            label=f"{family} {_name(label)}",
            color=COLOURS[i % 6],
            marker=MARKERS[i % 6],
            linestyle=LINES[j % 6],
            markerfacecolor="white" if not label else None,
            linewidth=1.3,
            markersize=5,
            elinewidth=0.9,
            capsize=2,
        )
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.set_ylabel(names.title(metric))
    panel.grid(axis="y")


# --- effects: what SPO changes ------------------------------------------------------------------------------------------


def _forest(numbers: Numbers) -> Drawing | None:
    results = numbers.results
    panels = []
    for task in results.tasks:
        for metric in headlines(results, task)[:1]:
            rows = [
                row
                for row in numbers.comparisons
                if (row["kind"], row["task"], row["metric"]) == ("spo", task, metric) and row["low"] is not None
            ]
            if rows:
                panels.append((task, metric, rows))
    if not panels:
        return None
    models = {row["model"] for _, _, rows in panels for row in rows}
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    tallest = max(len(rows) for _, _, rows in panels)

    def paint(figure: Figure) -> None:
        figure.set_layout_engine("constrained", wspace=0.08)  # room for the numbers beside a panel
        same = len({metric for _, metric, _ in panels}) == 1
        axes = figure.subplots(lines, columns, squeeze=False, sharex=same).reshape(-1)
        for panel, (task, metric, rows) in zip(axes, panels):
            _forest_panel(panel, metric, rows, len(models) > 1)
            panel.set_title(task)
        for panel in axes[len(panels) :]:
            panel.set_axis_off()

    caption = "What SPO changes: variant minus own baseline with 95 % interval. Filled: significant after Holm's correction."
    longest = max(len(row["variant"]) for _, _, rows in panels for row in rows if row["axes"]) if results.axes else 0
    width = 5.2 + 0.07 * max(0, longest - 20)
    return _finish("effects", caption, (width * columns, lines * (0.34 * tallest + 1.25)), paint)


def _forest_panel(panel: Any, metric: str, rows: Sequence[Mapping[str, Any]], with_model: bool) -> None:
    factor = names.scale(metric)
    digits = names.decimals(factor * (row["high"] - row["low"]) / 2 for row in rows)
    panel.axvline(0, color="#20242a", linewidth=0.9, zorder=1)
    for at, row in enumerate(rows):
        significant = row["p_adjusted"] is not None and row["p_adjusted"] < ALPHA
        diff, low, high = (factor * row[key] for key in ("diff", "low", "high"))
        panel.plot([low, high], [at, at], color=SPO, linewidth=1.7, solid_capstyle="round")
        panel.plot(diff, at, "s", color=SPO, markerfacecolor=SPO if significant else "white", markersize=6, markeredgewidth=1.4)
        text = "{} [{}, {}]".format(*(number(value, digits, sign=True) for value in (diff, low, high))).replace("-", "−")
        panel.text(1.02, at, text, transform=panel.get_yaxis_transform(), va="center", fontsize=8, color="#3c4149")
    shown = [f"{short_model(row['model'])} · {row['variant']}" if with_model else row["variant"] for row in rows]
    panel.set_yticks(range(len(rows)), shown)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    panel.set_xlabel(f"Δ {names.title(metric)}".replace(" %", " (points)"))
    panel.margins(x=0.08)
    panel.locator_params(axis="x", nbins=4)  # labels with three decimals must not touch
    panel.grid(axis="x")


# --- curves: how training went ------------------------------------------------------------------------------------------

_QUANTITIES = {"alignment_loss": "Preference loss", "reward_accuracy": "Reward accuracy", "degree_accuracy": "Degree accuracy"}


CURVE_COLUMNS = 6  # methods side by side; more begin another block of rows


def _curves(results: Results, model: str, task: str) -> Drawing | None:
    cells = [cell for cell in results.done if (cell.model, cell.task) == (model, task) and cell.method != SFT]
    logs = [(cell, log) for cell in cells if (log := cell.rows("train"))]
    shown = [
        (key, title) for key, title in _QUANTITIES.items() if any(row.get(key) is not None for _, log in logs for row in log[:5])
    ]
    if not shown:
        return None
    families, note = _plain_families([cell for cell, _ in logs])
    labels = _labels(results.done)
    columns = min(len(families), CURVE_COLUMNS)
    blocks = math.ceil(len(families) / columns)

    def paint(figure: Figure) -> None:
        axes = figure.subplots(blocks * len(shown), columns, squeeze=False, sharex="col")
        for panel in axes[-len(shown) :, len(families) - (blocks - 1) * columns :].flat:
            panel.set_axis_off()
        for i, (key, title) in enumerate(shown):
            for index, family in enumerate(families):
                block, j = divmod(index, columns)
                panel = axes[block * len(shown) + i][j]
                for place, label in enumerate(labels):
                    some = [_series(log, key) for cell, log in logs if (cell.family, cell.label) == (family, label)]
                    _curve(panel, [one for one in some if one[0].size], label, place)
                panel.grid(axis="y")
                panel.margins(x=0.01)
                if key != "alignment_loss":
                    panel.set_ylim(-0.03, 1.03)
                if i == 0:
                    panel.set_title(family)
                if j == 0:
                    panel.set_ylabel(title)
                if i == len(shown) - 1:
                    panel.set_xlabel("Step")
        _legend(figure, axes[0][0])

    several = len({cell.model for cell in results.done}) > 1
    where = f"{task} with {short_model(model)}" if several else task
    caption = f"Training on {where}: mean over seeds, smoothed over a twentieth of the steps; thin lines are single seeds.{note}"
    name = "-".join(["training", task, *([short_model(model)] if several else [])])
    return _finish(name, caption, (max(4.5, min(13.0, 3.0 * columns + 0.6)), 1.75 * len(shown) * blocks + 0.7), paint)


def _series(log: Sequence[Mapping[str, Any]], key: str) -> tuple[Any, Any]:
    known = [(row["step"], row[key]) for row in log if row.get(key) is not None]
    steps, values = (np.array([pair[i] for pair in known], dtype=np.float64) for i in (0, 1))
    width = max(1, len(known) // 20)
    if width > 1:
        window = np.ones(width)
        values = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
    return steps, values


def _curve(panel: Any, series: Sequence[tuple[Any, Any]], label: str, place: int) -> None:
    if not series:
        return
    colour = COLOURS[place % 6]
    if len(series) > 1:
        for steps, values in series:
            panel.plot(steps, values, color=colour, linewidth=0.6, alpha=0.4)
    shortest = min(len(steps) for steps, _ in series)
    mean = np.mean([values[:shortest] for _, values in series], axis=0)
    panel.plot(series[0][0][:shortest], mean, color=colour, linestyle=LINES[place % 6], linewidth=1.5, label=_name(label))


def _legend(figure: Figure, panel: Any) -> None:
    handles, texts = panel.get_legend_handles_labels()
    if texts:
        figure.legend(handles, texts, loc="outside upper right", ncols=len(texts), fontsize=8.5, handlelength=2.2)
