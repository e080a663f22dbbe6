"""Tables in five formats, held against tests/golden/ byte by byte.

After an intended change of a format, write the golden files anew with `python tests/test_render.py`, and read their diff.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import EVIL, make_run

from spo_bench.errors import InputError
from spo_bench.report import TABLES, table
from spo_bench.report.latex import PART
from spo_bench.report.render import FORMATS, Column, Entry, Table, number, tex_escape, to_csv, to_html, to_json, to_md, to_tex

GOLDEN = Path(__file__).parent / "golden"
NAME = "SPO_x & 50%"


def text(shown, value=None):
    return Entry(shown if value is None else value, shown)


def everything() -> Table:
    """A table with all there is: groups, blocks, marks, ties, daggers, missing, empty, small text, folds, names that need care."""
    columns = [
        Column("model", "Model", numeric=False, once=True),
        Column("method", "Method", numeric=False, once=True),
        Column("variant", "Variant", numeric=False),
        Column("judge", "Judge", numeric=False),
        Column("reward", "True reward", "Task #1", "up"),
        Column("difference", "Δ", "Task #1", "up"),
        Column("kl", "KL_α", "", "down"),
        Column("batch_size", "batch size", "Training", fold=True),
        Column("gamma", "gamma", "SPO", fold=True, said="weight_γ"),
        Column("rate", "learning rate", "Training", fold=True),
    ]
    same = {"text": "16", "small": "(spec)", "source": "spec"}
    rate = {"small": "(a)", "source": "the authors' repository"}

    def row(model, method, variant, reward, difference, kl, gamma, learning):
        settings = Entry(16, **same), gamma, Entry(learning, f"{learning:g}", **rate)
        return [text(model.rsplit("/")[-1], model), text(method), text(variant), text("gold"), reward, difference, kl, *settings]

    nothing, weight = Entry(text=""), Entry(0.1, "0.1", "(ours)", source="ours")
    small = Entry(-0.0123456789, "-0.012", "[-0.020, -0.005]", -0.02, -0.005, 0.0012345, 0.0049, 96)
    best = Entry(0.9123456789012345, "0.912", "±0.030", 0.88, 0.94, n=96, mark="best")
    rows = [
        row("a/policy_1", "dpo", "", replace(best), nothing, Entry(1.5, "1.50"), nothing, 1e-6),
        row("a/policy_1", "dpo", "+SPO", replace(best, n=95), replace(small, significant=True), Entry(2, "2"), weight, 1e-6),
        row("a/policy_1", "=ipo(β=0.1)", "", Entry(0.9, "0.900", "±0.031", mark="second"), nothing, Entry(), nothing, 5e-7),
        row("a/policy_1", "=ipo(β=0.1)", NAME, Entry(n=0), Entry(), Entry(-0.5, "-0.50"), weight, 5e-7),
        row("b/[policy]--2", "dpo", "", Entry(0.5, "0.500"), nothing, Entry(1e-9, "0.00"), nothing, 1e-6),
        row("b/[policy]--2", "dpo", "<b>*x*</b>", Entry(0.4, "0.400", mark="second"), small, Entry(), weight, 1e-6),
    ]
    blocks = [str(one[0].value) for one in rows]
    caption = ["Mean ± half of its 95 % interval, p < .05.", "† after “Holm’s” correction…", f"A name: {NAME}."]
    return Table("golden", "All | there_is", columns, rows, blocks, caption)


@pytest.mark.parametrize("ending", FORMATS)
def test_golden(ending):
    expected = (GOLDEN / f"table.{ending}").read_text(encoding="utf-8")
    assert FORMATS[ending](everything()) == expected, "renew: see the top of this file"


# --- what the table model says ------------------------------------------------------------------------------------------


def test_a_column_that_may_fold_does_so_where_all_that_is_not_empty_is_the_same():
    """gamma is empty in baselines and 0.1 elsewhere: folded; the learning rate differs: shown; the judge is one text: folded."""
    shown = [everything().columns[i].key for i in everything().visible()]
    assert shown == ["model", "method", "variant", "reward", "difference", "kl", "rate"]
    notes = " ".join(everything().notes())
    assert notes.startswith("Judge: gold. Training: batch size 16 (spec). SPO: weight_γ 0.1 (ours). Mean ±")
    every = json.loads(to_json(everything()))["rows"][1]["entries"]
    assert every["SPO:gamma"] == {"value": 0.1, "text": "0.1 (ours)", "source": "ours"}


def test_a_text_column_with_an_empty_place_does_not_fold():
    rows = [[text("a"), text("x")], [text("b"), Entry("", "")]]
    some = Table("x", "X", [Column("one", "One", numeric=False), Column("two", "Two", numeric=False)], rows)
    assert some.visible() == [0, 1]


def test_names_repeat_in_csv_and_json_and_stand_once_a_block_elsewhere():
    names = ["policy_1"] * 4 + ["[policy]--2"] * 2
    assert [row["model"] for row in csv.DictReader(io.StringIO(to_csv(everything())))] == ["a/policy_1"] * 4 + [
        "b/[policy]--2"
    ] * 2
    assert [row["entries"]["model"]["text"] for row in json.loads(to_json(everything()))["rows"]] == names
    first = [line.split("|")[1].strip() for line in to_md(everything()).splitlines() if line.startswith("|")][2:]
    assert first == ["policy_1", "", "", "", "[policy]--2", ""]
    methods = [line.split("|")[2].strip() for line in to_md(everything()).splitlines() if line.startswith("|")][2:]
    assert methods == ["dpo", "", "=ipo(β=0.1)", "", "dpo", ""]  # dpo is named again: it is another model's
    assert to_html(everything()).count('<td class="txt again"><span hidden>policy_1</span></td>') == 3


def test_the_legend_says_what_bold_is():
    assert "Best in bold, second in italics, in each block, before rounding: an order, not a test." in to_md(everything())
    assert "Best in bold, second underlined" in to_tex(everything())
    honest = replace(everything(), bold="undominated")
    assert "Bold: not significantly worse than the best" in to_html(honest)
    plain = replace(everything(), rows=[[replace(entry, mark="") for entry in row] for row in everything().rows])
    assert "Best in" not in to_md(plain)


# --- formats ------------------------------------------------------------------------------------------------------------


def small_table():
    return Table(
        "x",
        EVIL,
        [Column("method", "Method_α", numeric=False), Column("r", "Reward", "Task #1", "up")],
        [
            [text("=1+1"), Entry(0.1234567890123, "0.123", "[-0.1, +0.2]", low=-0.1, mark="best", significant=True)],
            [text("@b|c"), Entry(-0.5, "-0.500", mark="second")],
            [text("ok"), Entry()],
        ],
        ["a", "a", "b"],
        ["One note."],
    )


def test_csv_keeps_precision_and_disarms_formulas():
    rows = list(csv.reader(io.StringIO(to_csv(small_table()))))
    assert rows[0] == ["method", "Task #1:r", "Task #1:r:low"]
    assert rows[1:] == [["'=1+1", "0.1234567890123", "-0.1"], ["'@b|c", "-0.5", ""], ["ok", "", ""]]


def test_markdown_escapes_pipes_and_marks():
    shown = to_md(small_table())
    assert r"| @b\|c | _-0.500_ |" in shown
    assert "**0.123†**" in shown
    assert "| ok | -- |" in shown


def test_tex_escapes_everything_and_rules_are_booktabs():
    shown = to_tex(small_table())
    assert r"\multicolumn{1}{c}{Task \#1}" in shown
    assert r"\textbf{0.123}$^{\dagger}$ {\scriptsize {[}$-$0.1, $+$0.2{]}}" in shown
    assert r"\underline{$-$0.500}" in shown
    assert [shown.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule")] == [1, 2, 1, 1]
    assert tex_escape("a_b%&#${}~^\\") == (r"a\_b\%\&\#\$\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}")
    assert tex_escape("a--b---c – β\x00ο") == r"a-{}-b-{}-{}-c -- $\beta$o"


def test_html_escapes_text_and_json_keeps_numbers():
    shown = to_html(small_table())
    assert "<script>" not in shown
    assert 'data-v="0.1234567890123"' in shown
    entries = json.loads(to_json(small_table()))["rows"][0]["entries"]
    assert entries["Task #1:r"] == {
        "value": 0.1234567890123,
        "text": "0.123 [-0.1, +0.2]",
        "low": -0.1,
        "significant": True,
        "mark": "best",
    }


def test_number_has_no_negative_zero():
    assert [number(-0.0001, 2), number(-0.0001, 2, sign=True)] == ["0.00", "0.00"]
    assert [number(None, 2), number(math.nan, 1)] == ["--", "--"]
    assert number(1234.5, 1) == "1,234.5"


def test_a_name_that_is_hard_to_write_survives_every_format(tmp_path):
    out = make_run(tmp_path, tasks=("controlled_dialogue",), methods=(NAME,), model=f"hub/{NAME}", seeds=(0,), steps=2)
    assert [row["model"] for row in csv.DictReader(io.StringIO(table(out, "main", "csv")))] == [f"hub/{NAME}"] * 3
    assert json.loads(table(out, "main", "json"))["rows"][1]["entries"]["method"]["value"] == NAME
    assert f'<td class="txt">{html.escape(NAME)}</td>' in table(out, "main", "html")
    assert f"| {NAME} |" in table(out, "main", "md")
    assert r"SPO\_x \& 50\% &" in table(out, "main", "tex")


# --- LaTeX, compiled ----------------------------------------------------------------------------------------------------


def long_table(rows, columns=1):
    """Rows in blocks of 25, and so many groups of two columns."""
    heads = [Column("model", "Model", numeric=False, once=True), Column("method", "Method", numeric=False)]
    heads += [Column(f"{i}{side}", f"True reward {side}", f"task_{i}") for i in range(columns) for side in "ab"]
    entry = Entry(0.123, "0.123", "[-0.123, +0.123]")
    body = [[text(f"m{i // 25}"), text(f"method {i}"), *[entry] * (2 * columns)] for i in range(rows)]
    return Table("long", "Long", heads, body, [f"m{i // 25}" for i in range(rows)])


def test_a_long_table_is_cut_where_blocks_end_and_names_its_model_again():
    """80 rows, at most 36 on a page, blocks of 25: cuts after 25 and 50 rows."""
    parts = to_tex(long_table(80)).split(r"\begin{table}[p]")[1:]
    assert [part.count("method ") for part in parts] == [25, 25, 30]
    assert [re.findall(r"m\d(?= &)", part) for part in parts] == [["m0"], ["m1"], ["m2", "m3"]]
    assert r"\caption" in parts[0]
    assert all("(continued)" in part and r"\caption" not in part for part in parts[1:])
    one_block = replace(long_table(100), blocks=())
    counts = [part.count("method ") for part in to_tex(one_block).split(r"\begin{table}[p]")[1:]]
    assert counts == [PART, PART, 100 - 2 * PART]


def test_a_wide_table_is_cut_between_groups_and_every_panel_has_the_names():
    shown = to_tex(long_table(10, columns=8))
    panels = shown.split(r"\sbox0{%")[1:]
    assert len(panels) > 1
    assert all("Method & " in panel and "method 9 & " in panel for panel in panels)
    assert re.findall(r"task\\_(\d)", shown) == list("01234567")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Every table of a synthetic run, and tables made to be difficult, in one article: (log, text of the PDF or None)."""
    if not (shutil.which("pdflatex") and shutil.which("kpsewhich")):
        pytest.skip("no pdflatex here")
    for package in ("booktabs.sty", "graphicx.sty"):
        if subprocess.run(["kpsewhich", package], capture_output=True, check=False).returncode:
            pytest.skip(f"pdflatex has no {package} here")
    folder = tmp_path_factory.mktemp("tex")
    gammas = [{"label": f"+SPO(gamma={gamma})", "gamma": gamma} for gamma in (0.03, 0.3)]
    out = make_run(
        folder / "run",
        methods=("dpo", NAME),
        variants=(False, {"label": "+SPO", "gamma": 0.1}, *gammas, {"label": "+SPO[gamma_zero]", "control": "gamma_zero"}),
        model=f"hub/{NAME}",
        steps=4,
    )
    parts = []
    for name in TABLES:
        said = r"\typeout{panel \the\wd0}\ifdim\wd0>" if name != "effects" else r"\ifdim\wd0>"
        try:
            parts.append(table(out, name, "tex").replace(r"\ifdim\wd0>", said))
        except InputError as error:  # a table that this run does not have
            assert name in ("axes", "judge"), error  # noqa: PT017
    parts += [to_tex(one) for one in (everything(), small_table(), long_table(60), long_table(10, columns=8))]
    packages = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{textcomp,booktabs,graphicx}"
    source = packages + r"\begin{document}" + "\n\\clearpage\n".join(parts) + r"\end{document}"
    (folder / "t.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    if not shutil.which("pdftotext"):
        return done.stdout, None
    read = subprocess.run(["pdftotext", "-layout", "t.pdf", "-"], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout, read.stdout


def test_no_table_is_wider_than_the_line_or_longer_than_the_page(compiled):
    log, _ = compiled
    too_wide = [float(size) for size in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", log)]
    assert [size for size in too_wide if size > 5] == []
    assert "Float too large" not in log
    widths = [float(size) for size in re.findall(r"panel ([\d.]+)pt", log)]
    assert len(widths) > 10
    assert max(widths) <= 1.25 * 345  # so that nothing is scaled below 80 %, but effects, whose long names alone fill a line


def test_the_caption_is_short_and_the_notes_stand_below():
    one = replace(everything(), short=["Mean ± half of its 95 % interval, p < .05."])
    shown = to_tex(one)
    caption, below = shown.split(r"\sbox0{%")
    assert caption.count("Mean") == 1
    assert "Holm" not in caption
    assert r"\par\smallskip\parbox{\linewidth}{\footnotesize Judge: gold." in below
    assert "Holm" in below
    assert "Mean" not in below
    assert not shown.startswith("% 6 rows")
    assert "\n% 120 rows on 4 pages: long" in to_tex(replace(long_table(120), blocks=()))


def test_names_survive_in_the_pdf(compiled):
    _, shown = compiled
    if shown is None:
        pytest.skip("no pdftotext here")
    words = re.sub(r"[\s_]+", " ", shown)  # an underscore of the article's own font is a line without a letter
    for name in (NAME, f"{NAME} +SPO", "+SPO[gamma", "=ipo(β=0.1)", "[policy]--2", "<b>*x*</b>", "@b|c"):
        assert name.replace("_", " ") in words, name


if __name__ == "__main__":
    for ending, render in FORMATS.items():
        (GOLDEN / f"table.{ending}").write_text(render(everything()), encoding="utf-8")
