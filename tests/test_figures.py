"""The figures, drawn from synthetic runs with every warning an error: what they show, that all of it fits, and their bytes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from synthetic_run import make_run

from spo_bench.files import read_json, read_jsonl, write_json, write_jsonl
from spo_bench.report.figures import draw, style, training
from spo_bench.report.figures.policies import Policy, policies
from spo_bench.report.figures.wins import outcomes
from spo_bench.report.measure import comparison_rows
from spo_bench.report.results import Cell, read_results
from spo_bench.report.tables import gather
from spo_bench.stats import interval

SPO = {"label": "+SPO", "gamma": 0.1, "degrees": 4, "control": None}
CONTROL = {**SPO, "label": "+SPO[random_removal]", "control": "random_removal"}


@pytest.fixture(autouse=True)
def every_warning_is_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def with_kl(out, place=lambda row: 1.0 + row["seed"]):
    """Give every trained policy of a run a KL of its own."""
    for row in read_jsonl(out / "cells.jsonl"):
        path = out / "cells" / row["id"] / "scores.json"
        if row["method"] != "sft" and path.exists():
            scores = read_json(path)
            values = place(row) + np.linspace(-0.5, 0.5, len(scores["metrics"]["true_reward"]["ids"]))
            scores["metrics"]["kl"] = {**scores["metrics"]["true_reward"], "values": values.tolist(), "higher_is_better": False}
            write_json(path, scores)
    return out


def numbers_of(out):
    results = read_results(out)
    return gather(results, comparison_rows(results))


def drawn(out, only_png=True):
    """Return the drawings by name, and the figures they were made from; the other formats take time and are laid out the same."""
    figures = []
    save = Figure.savefig

    def kept(self, file, **options):
        figures.extend([self] if options["format"] == "png" else [])
        if options["format"] == "png" or not only_png:
            save(self, file, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", kept)
        drawings = draw(numbers_of(out))
    return {one.name: one for one in drawings}, dict(zip([one.name for one in drawings], figures, strict=True))


def texts(figure):
    found = [
        text
        for panel in figure.axes
        for text in [*panel.texts, panel.title, panel._left_title, panel.xaxis.label, panel.yaxis.label]
    ]
    found += [text for legend in figure.legends for text in legend.get_texts()]
    return [text for text in found if text.get_text().strip()]


def ticks(panel):
    if not panel.axison:
        return [], []
    sides = panel.get_xticklabels(), panel.get_yticklabels()
    limits = sorted(panel.get_xlim()), sorted(panel.get_ylim())
    return [
        [label for label in labels if label.get_text() and low <= label.get_position()[i] <= high]
        for i, (labels, (low, high)) in enumerate(zip(sides, limits))
    ]


def assert_all_fits(figure):
    """Assert that no text is cut off, and that neither tick labels nor the texts of a panel touch each other."""
    figure.set_dpi(200)  # as in the png; svg and pdf set text without hinting, which is narrower
    with mpl.rc_context(style.STYLE):
        figure.draw_without_rendering()
    renderer, page = figure._get_renderer(), figure.bbox
    inside = [*texts(figure), *(label for panel in figure.axes for side in ticks(panel) for label in side)]
    for text in inside:
        box = text.get_window_extent(renderer)
        assert box.x0 >= page.x0 - 0.5, text
        assert box.x1 <= page.x1 + 0.5, text
        assert box.y0 >= page.y0 - 0.5, text
        assert box.y1 <= page.y1 + 0.5, text
    for panel in figure.axes:
        groups = [*ticks(panel), [text for text in panel.texts if text.get_text()]]
        for group in groups:
            boxes = [(one, one.get_window_extent(renderer).shrunk(0.9, 0.7)) for one in group]
            for (one, first), (other, second) in combinations(boxes, 2):
                assert not first.overlaps(second), (one, other)
    boxes = [text.get_window_extent(renderer) for legend in figure.legends for text in legend.get_texts()]
    assert not any(one.shrunk(0.9, 0.8).overlaps(other.shrunk(0.9, 0.8)) for one, other in combinations(boxes, 2))


def assert_told_apart(figure):
    """Assert that the lines of a panel differ in more than colour."""
    for panel in figure.axes:
        looks = [
            (
                line.get_marker(),
                str(line.get_linestyle()),
                str(line._unscaled_dash_pattern),
                to_hex(line.get_markerfacecolor()) == "#ffffff",
            )
            for line in panel.lines
            if line.get_marker() not in ("None", "_", "|") and line.get_linestyle() != "None"
        ]
        assert len(set(looks)) == len(looks)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    variants = (False, SPO, CONTROL)
    return with_kl(make_run(tmp_path_factory.mktemp("run"), methods=("dpo", "ipo"), variants=variants, steps=60))


@pytest.fixture(scope="module")
def seen(run):
    """What is drawn of ``run``."""
    return drawn(run, only_png=False)


# --- formats ------------------------------------------------------------------------------------------------------------


def test_every_figure_in_every_format_at_the_width_of_a_paper(seen):
    drawings, figures = seen
    training_names = ["training-controlled_dialogue", "training-controlled_summarization"]
    assert list(drawings) == ["levels", "effects", "frontier", "win_rates", "degrees", *training_names]
    for name, one in drawings.items():
        assert one.png.startswith(b"\x89PNG")
        assert one.pdf.startswith(b"%PDF")
        width = float(ElementTree.fromstring(one.svg).get("width").removesuffix("pt")) / 72
        assert width == pytest.approx(style.COLUMN) or width == pytest.approx(style.PAGE)
        assert figures[name].get_size_inches()[1] <= style.TALLEST
        for text in texts(figures[name]):
            assert 7 <= text.get_fontsize() <= 9
        assert 20 < len(one.caption) < 420
        assert_all_fits(figures[name])
        assert_told_apart(figures[name])


def test_the_same_bytes_in_another_process_and_no_dates(run, seen):
    code = (
        "import sys, hashlib; from pathlib import Path; from spo_bench.report.figures import draw\n"
        "from spo_bench.report.measure import comparison_rows; from spo_bench.report.results import read_results\n"
        "from spo_bench.report.tables import gather\n"
        "results = read_results(Path(sys.argv[1])); found = draw(gather(results, comparison_rows(results)))\n"
        "print(hashlib.sha256(b''.join(one.png + one.svg + one.pdf for one in found)).hexdigest())"
    )
    found = seen[0].values()
    there = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == hashlib.sha256(b"".join(one.png + one.svg + one.pdf for one in found)).hexdigest()
    for one in found:
        assert b"CreationDate" not in one.pdf
        assert b"dc:date" not in one.svg
        assert b"/Type0" in one.pdf  # TrueType, as journals ask for
        assert b"/Type3" not in one.pdf


# --- whatever a run may be ----------------------------------------------------------------------------------------------


MANY = tuple({**SPO, "label": f"+SPO(order=score_asc, gamma={0.1 * i:.1f})", "gamma": 0.1 * i} for i in range(1, 5))
RUNS = {
    "one arm": dict(tasks=("a",), methods=("dpo",), variants=(False,)),
    "one seed": dict(tasks=("a",), methods=("dpo",), seeds=(0,), variants=(False, SPO)),
    "one prompt": dict(tasks=("a",), methods=("dpo",), prompts=1, variants=(False, SPO)),
    "no baseline": dict(tasks=("a",), methods=("dpo", "ipo"), variants=(SPO,)),
    "failed": dict(methods=("dpo", "ipo"), failed=[("controlled_dialogue", m, s, 0) for m in ("sft", "dpo") for s in (False, True)]),
    "odd names": dict(
        tasks=("t$_1^2$/<b>&", "_hidden"), methods=("$x_1$ 50%", "_quiet", "\\frac{a}{b}\n方法"), model="models/m$_{a}$<i>", variants=(False, SPO)
    ),
    "long names": dict(
        tasks=("a_task_with_a_name_that_no_column_of_any_paper_holds",),
        methods=("a_method_with_a_name_that_nobody_should_ever_give_to_it", "dpo"),
        variants=(False, SPO, {**SPO, "label": f"+SPO({', '.join(f'setting_{i}={i}' for i in range(6))})"}),
    ),
    "many arms": dict(
        tasks=("a",), methods=("dpo", "ipo", "simpo", "kto", "orpo", "slic", "cpo", "rdpo"), variants=(False, SPO, CONTROL, *MANY[:3]), seeds=(0, 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_any_run_is_drawn_with_nothing_cut_off_or_overlapping(kind, tmp_path):
    out = with_kl(make_run(tmp_path, **{"steps": 6, **RUNS[kind]}))
    drawings, figures = drawn(out)
    assert {"levels", "win_rates"} <= set(drawings)
    assert all("/" not in name and "\n" not in name for name in drawings)
    for name, figure in figures.items():
        assert figure.get_size_inches()[0] in (style.COLUMN, style.PAGE)
        assert_all_fits(figure)
        assert_told_apart(figure), name


def test_names_are_shown_as_they_are(tmp_path):
    _, figures = drawn(make_run(tmp_path, **RUNS["odd names"], steps=6))
    shown = {text.get_text() for text in texts(figures["levels"])}
    assert {"$x_1$ 50%", " _quiet", "\\frac{a}{b} ??", "t$_1^2$/<b>&"} <= shown
    assert not any(text.get_parse_math() for figure in figures.values() for text in texts(figure))


def test_nothing_finished_draws_nothing(tmp_path):
    every = [("a", method, spo, 0) for method in ("sft", "dpo") for spo in (False, True)]
    assert draw(numbers_of(make_run(tmp_path, tasks=("a",), methods=("dpo",), seeds=(0,), failed=every))) == []


def test_many_panels_are_continued_on_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "TALLEST", 2.5)
    tasks = tuple(f"task_{i}" for i in range(training.MOST_FIGURES + 2))
    out = make_run(tmp_path, tasks=tasks, methods=("dpo",), variants=(False, SPO), seeds=(0,), prompts=6, steps=8)
    drawings, figures = drawn(out)
    for kind in ("levels", "win_rates", "degrees"):
        pages = [name for name in drawings if name.startswith(kind)]
        assert pages == [kind, *(f"{kind}-{i}" for i in range(2, len(pages) + 1))]
        assert len(pages) > 1
        for i, name in enumerate(pages):
            assert drawings[name].caption.endswith(f"Part {i + 1} of {len(pages)}.")
            assert figures[name].get_size_inches()[1] <= 2.5
        titles = [panel._left_title.get_text() for name in pages for panel in figures[name].axes]
        assert titles == list(tasks)
    curves = [name for name in drawings if name.startswith("training")]
    assert len(curves) == training.MOST_FIGURES
    assert "2 more are left out" in drawings[curves[0]].caption


# --- what they show -----------------------------------------------------------------------------------------------------


def test_levels_show_values_with_intervals(run, seen):
    numbers = numbers_of(run)
    _, figures = seen
    panel = figures["levels"].axes[0]
    own = [one for one in policies(numbers.results)["embedded", "controlled_dialogue"] if one.role != "sft"]
    levels = [numbers.level(one.first, "true_reward") for one in own]
    marks = [line for line in panel.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in marks] == [level.value for level in levels]
    bars = [line.get_xdata() for line in panel.lines if len(line.get_xdata()) == 2][1:]
    assert [list(bar) for bar in bars] == [[level.low, level.high] for level in levels]
    assert [one.role for one in own] == ["baseline", "spo", "control"] * 2
    assert panel.texts[6].get_text() == f"{levels[0].value:.3f} ± {(levels[0].high - levels[0].low) / 2:.3f}"


def test_effects_set_controls_apart_and_fill_what_is_significant(tmp_path):
    out = make_run(
        tmp_path, tasks=("a",), methods=("dpo", "ipo"), variants=(False, CONTROL, SPO), effect=0.2, prompts=60, steps=2
    )
    for row in read_jsonl(out / "cells.jsonl"):  # the control changes nothing
        if row["spo"] and row["spo"]["control"]:
            twin = out / "cells" / row["id"].replace("-_SPO_random_removal_", "")
            write_json(out / "cells" / row["id"] / "scores.json", read_json(twin / "scores.json"))
    _, figures = drawn(out)
    panel = figures["effects"].axes[0]
    names = [text.get_text() for text in panel.texts[:4]]
    assert names == ["dpo +SPO", "ipo +SPO", "dpo [random_removal]", "ipo [random_removal]"]
    heights = [text.get_position()[1] for text in panel.texts[:4]]
    assert heights[2] - heights[1] > heights[1] - heights[0]
    fills = [to_hex(line.get_markerfacecolor()) for line in panel.lines if len(line.get_xdata()) == 1]
    assert fills == [style.SPO, style.SPO, "#ffffff", "#ffffff"]
    assert panel.get_xlim()[0] < 0 < panel.get_xlim()[1]


def test_frontier_leads_from_a_baseline_to_its_variants(run, seen):
    numbers = numbers_of(run)
    _, figures = seen
    panel = figures["frontier"].axes[0]
    own = policies(numbers.results)["embedded", "controlled_dialogue"]
    heights = {one.first.name: numbers.level(one.first, "true_reward").value for one in own}
    marks = {tuple(float(line.get_data()[i][0]) for i in (0, 1)) for line in panel.lines if line.get_markersize() == 4.6}
    assert marks == {(0.0 if name == "sft" else 1.5, value) for name, value in heights.items()}
    leads = [line.get_ydata() for line in panel.lines if line.get_color() == style.QUIET]
    assert sorted(map(list, leads)) == sorted(
        [heights[m], heights[f"{m} {v['label']}"]] for m in ("dpo", "ipo") for v in (SPO, CONTROL)
    )
    seeds = [line for line in panel.lines if line.get_markersize() == 2]
    assert [sorted(line.get_xdata()) for line in seeds] == [[1.0, 2.0]] * 6


def test_a_far_policy_does_not_press_the_others_together(tmp_path):
    out = make_run(tmp_path, tasks=("a",), methods=("dpo", "ipo", "simpo"), steps=2)
    _, figures = drawn(with_kl(out, lambda row: 80.0 if row["method"] == "ipo" and row["spo"] else 1.0))
    assert figures["frontier"].axes[0].get_xscale() == "symlog"
    assert_all_fits(figures["frontier"])


def test_what_runs_off_the_frontier_or_is_hidden_is_marked(tmp_path):
    """dpo’s first seed is far off; ipo and its twin are the same policy."""
    out = make_run(tmp_path, tasks=("a",), methods=("dpo", "ipo"), variants=(False, SPO), steps=2)
    with_kl(out, lambda row: 40.0 * row["seed"] - 19.0 if row["method"] == "dpo" else 1.0)
    for seed in (0, 1):
        twin = read_json(out / "cells" / f"embedded-a-ipo-s{seed}" / "scores.json")
        write_json(out / "cells" / f"embedded-a-ipo-_SPO-s{seed}" / "scores.json", twin)
    drawings, figures = drawn(out)
    panel = figures["frontier"].axes[0]
    left, right = panel.get_xlim()
    for marker, border, seed in (("<", left, -19.0), (">", right, 21.0)):
        assert not left <= seed <= right
        carets = [line for line in panel.lines if line.get_marker() == marker]
        assert {float(line.get_xdata()[0]) for line in carets} == {border}
        assert len(carets) == 2 + 4  # a seed of dpo and of its twin; an end of every interval, since seed noise is pooled
    large = [line for line in panel.lines if line.get_markersize() == 8]
    assert [(line.get_xdata()[0], line.get_markerfacecolor()) for line in large] == [(1.0, "none")]
    assert panel.get_xlabel() == "KL to reference (sampled estimate)"
    assert "may fall below 0 by chance" in drawings["frontier"].caption


def test_win_rates_count_outcomes_and_show_invalid_ones_apart(tmp_path):
    out = make_run(tmp_path, tasks=("a",), methods=("dpo",), variants=(False,), seeds=(0,), prompts=20, steps=2)
    path = out / "cells" / "a".join(["embedded-", "-dpo-s0"]) / "judgments.jsonl"
    fell = ["a"] * 9 + ["b"] * 4 + ["tie"] * 5 + ["invalid"] * 2
    rows = [{"opponent": "sft", "id": f"a-{i:03d}", "outcome": one, "score": None} for i, one in enumerate(fell)]
    write_jsonl(path, [*rows, {"id": "x", "reason": '"outcome": "b"', "opponent": "chosen", "outcome": "a", "score": 0.75}])
    cell = next(cell for cell in read_results(out).done if cell.method == "dpo")
    found = outcomes(Policy([cell]))
    assert found == {"sft": {"win": 9, "lose": 4, "tie": 5, "invalid": 2}, "chosen": {"win": 1}}
    assert outcomes(Policy([cell, cell]))["sft"].total() == 40
    drawings, figures = drawn(out)
    assert [text.get_text() for text in figures["win_rates"].legends[0].get_texts()] == ["win", "tie", "lose", "invalid"]
    level = interval(cell.metrics["win_rate_sft"].values)
    shown = f"{100 * level[0]:.0f} [{100 * level[1]:.0f}, {100 * level[2]:.0f}]"  # Wilson's interval is lopsided
    assert shown in [text.get_text() for text in texts(figures["win_rates"])]
    assert "invalid verdicts left out" in drawings["win_rates"].caption


def test_degrees_show_wilson_intervals_chance_and_controls(tmp_path):
    out = make_run(tmp_path, tasks=("a",), methods=("dpo",), variants=(False, SPO, CONTROL), seeds=(0, 1), steps=2)
    for row in read_jsonl(out / "cells.jsonl"):
        if row["spo"]:
            path = out / "cells" / row["id"] / "scores.json"
            bins = (
                {"128+": [0, 3], "64-128": [1, 2], "16-32": [6, 10], "0-16": [9, 10]}
                if not row["spo"]["control"]
                else {"16-32": [3, 10]}
            )
            write_json(path, {**read_json(path), "degree_bins": bins})
    drawings, figures = drawn(out)
    panel = figures["degrees"].axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0–16", "16–32", "128+"]
    lines = {line.get_linestyle(): line for line in panel.lines if line.get_marker() in style.MARKERS}
    assert list(lines["-"].get_ydata()) == [90, 60, 0]
    assert list(lines[":"].get_ydata()) == [30]
    ends = panel.collections[0].get_segments()[0][:, 1]
    _, low, high, _ = interval([1] * 18 + [0] * 2)
    assert list(ends) == pytest.approx([100 * low, 100 * high])
    assert 25 in [line.get_ydata()[0] for line in panel.lines]
    assert "held-out rows" in drawings["degrees"].caption
    assert "fewer than 5 copies are left out" in drawings["degrees"].caption  # two seeds of 2 copies


def test_crowded_lines_get_a_panel_a_method_and_the_rest_is_named(tmp_path):
    variants = (False, SPO, *MANY, *({**CONTROL, "label": f"+SPO[c{i}]"} for i in range(5)))
    out = make_run(tmp_path, tasks=("a",), methods=("dpo", "ipo"), variants=variants, seeds=(0,), steps=34)
    drawings, figures = drawn(out)
    assert [panel._left_title.get_text() for panel in figures["degrees"].axes] == ["a · dpo", "a · ipo"]
    assert "4 further variants left out" in drawings["degrees"].caption
    names = [text.get_text() for text in figures["degrees"].legends[0].get_texts()]
    assert names[0] == "+SPO"
    assert {f"+SPO[c{i}]" for i in range(5)} < set(names)
    assert "6 further variants left out" in drawings["training-a"].caption
    assert_told_apart(figures["degrees"])
    assert_told_apart(figures["training-a"])


def test_training_curves_are_means_with_bands_from_logs_read_once(run, seen, monkeypatch):
    read = []
    rows = Cell.rows
    monkeypatch.setattr(Cell, "rows", lambda self, name: read.append((self.id, name)) or rows(self, name))
    with mpl.rc_context(style.STYLE):
        training.draw(numbers_of(run))
    assert len(read) == len(set(read)) == 24
    _, figures = seen
    figure = figures["training-controlled_dialogue"]
    labels = [panel.get_ylabel() for panel in figure.axes[::2]]
    assert labels == ["Preference loss", "Reward accuracy", "Degree accuracy", "Chosen log-ratio", "Rejected log-ratio"]
    logs = [list(read_jsonl(run / "cells" / f"embedded-controlled_dialogue-dpo-s{seed}" / "train.jsonl")) for seed in (0, 1)]
    values = np.array([[row["reward_accuracy"] for row in log if row["step"]] for log in logs])  # step 0 is rounding noise
    smooth = np.stack([np.convolve(some, np.ones(2), "same") / np.convolve(np.ones(59), np.ones(2), "same") for some in values])
    panel = figure.axes[2]
    assert panel.lines[0].get_xdata()[0] == 1
    assert figure.axes[0].lines[0].get_xdata()[0] == 0
    assert "Reward accuracy is drawn from step 1" in seen[0]["training-controlled_dialogue"].caption
    assert list(panel.lines[0].get_ydata()) == pytest.approx(smooth.mean(0))
    band = panel.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(smooth.min())
    assert band[:, 1].max() == pytest.approx(smooth.max())
