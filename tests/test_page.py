"""The page in a real browser: it opens from a file, sorts, filters, opens samples, and runs nothing that a model wrote."""

from __future__ import annotations

import re
from functools import partial

import pytest
from chromium import Tab, chromium
from synthetic_run import make_run

from spo_bench.files import read_jsonl, write_jsonl
from spo_bench.report import write_report
from spo_bench.report.keycontent import KeyContent

EVIL = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><!-- \u2028 \u2029 & \" ' ]]> "
    "<svg onload=window.hacked=3> {{ 7 * 7 }} \U0001f600 the loud bell"
)
BASE, SPO = "embedded-controlled_dialogue-dpo-s0", "embedded-controlled_dialogue-dpo-_SPO-s0"
ID = "controlled_dia-00{}".format


def asked(first, verdict, text):
    """One order of a judge's verdict as the cells hold it."""
    return {"first": first, "verdict": verdict, "text": text, "finish_reason": "stop", "error": None, "reason": None}


def spoil(path, change):
    """Change rows of a .jsonl file in place."""
    rows = list(read_jsonl(path))
    for i, row in enumerate(rows):
        change(i, row)
    write_jsonl(path, rows)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """2,000 samples: 2 tasks of 250 prompts, 2 methods, 2 seeds; first answers and a name are hostile, a verdict has two opinions."""
    out = make_run(tmp_path_factory.mktemp("run"), methods=("dpo", "i<b>po"), prompts=250, steps=2)

    def answers(i, row, water):
        row["rejected"] = "It eats stones."
        if i < 2:
            row |= {"prompt": f"{EVIL} prompt", "answer": f"{EVIL} {i}", "chosen": EVIL}
        if i == 4:
            row["answer"] = "Long. " * 1000

        if i == 5:
            row["answer"] = f"It grows by the {water}."

    def verdicts(i, row):
        if i == 2:
            row["orders"] = [asked("a", "a", f"A because {EVIL}"), asked("b", "b", "the first, again")]

    for cell, water in ((BASE, "river"), (SPO, "sea")):
        spoil(out / "cells" / cell / "samples.jsonl", partial(answers, water=water))
    spoil(out / "cells" / SPO / "judgments.jsonl", verdicts)
    write_report(out)
    return out


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def tab(browser, run):
    opened = Tab(browser, address(run))
    with opened as page:
        page.select_option("#pick-order", "data")
        yield page
    assert opened.said == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in opened.requests) == 1


def address(run, link=""):
    return (run / "report.html").as_uri() + link


def listed(page):
    return page.locator("#sample-list > li")


def settled(page, words):
    """Wait until the list's status says something."""
    page.wait_for_function("words => document.getElementById('sample-status').textContent.includes(words)", arg=words)


def test_it_opens_from_a_file_without_a_word_or_a_request(tab):
    """The fixture looks at what the page said and asked for."""
    assert tab.locator("h1").text_content() == "quick <demo>"
    assert listed(tab).count() == 50
    assert tab.locator("#sample-status").text_content() == "1–50 of 250 samples"
    assert tab.evaluate("document.documentElement.dataset.samples") == "2000"
    assert tab.evaluate("getComputedStyle(document.querySelector('.sheet img, .drawing img')).display") != "none"
    assert tab.evaluate("[...document.images].every(one => one.src.startsWith('data:'))")


def test_every_file_that_the_page_links_to_is_there(run):
    links = re.findall(r' href="((?!#|data:)[^"]+)"', (run / "report.html").read_text(encoding="utf-8"))
    assert {link.split("/")[0] for link in links} == {"tables", "figures"}
    assert all((run / link).is_file() for link in links), links


def test_tables_sort_by_mouse_and_by_key(tab):
    """Descending, ascending, and then as written; numbers by their full precision."""
    head = tab.locator("#table-main thead tr:last-child th.num").first
    column = head.evaluate("head => head.cellIndex")
    values = "(column) => [...document.querySelectorAll('#table-main tbody tr')].map(row => Number(row.cells[column].dataset.v))"
    written = tab.evaluate(values, column)
    head.click()
    assert (head.get_attribute("aria-sort"), tab.evaluate(values, column)) == ("descending", sorted(written, reverse=True))
    head.focus()
    tab.keyboard.press("Enter")
    assert (head.get_attribute("aria-sort"), tab.evaluate(values, column)) == ("ascending", sorted(written))
    tab.keyboard.press("Enter")
    assert (head.get_attribute("aria-sort"), tab.evaluate(values, column)) == (None, written)
    assert written not in (sorted(written), sorted(written, reverse=True))


def test_long_tables_have_a_filter(tab):
    tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    tab.fill("#table-audit input[type=search]", "dpo CHOSEN")
    rows = tab.locator("#table-audit tbody tr:visible")
    assert 0 < rows.count() < tab.locator("#table-audit tbody tr").count()
    assert all("dpo" in text and "chosen" in text for text in rows.all_text_contents())


def test_filters_narrow_the_list_and_say_how_far(tab):
    outcomes = dict(option.rsplit(" (", 1) for option in tab.locator("#pick-outcome option").all_text_contents())
    counts = {name: int(count.rstrip(")")) for name, count in outcomes.items()}
    assert counts["any"] == 250 == counts["gains"] + counts["losses"] + counts["same"] + counts["not comparable"]
    tab.select_option("#pick-outcome", "gain")
    settled(tab, f"of {counts['gains']} samples")
    assert all("+" in text for text in tab.locator(".delta").all_text_contents())
    tab.select_option("#pick-order", "gain")
    gains = [float(text.split("+")[1]) for text in tab.locator(".delta").all_text_contents()]
    assert gains == sorted(gains, reverse=True)
    tab.select_option("#pick-outcome", "")
    tab.fill("#sample-search", "Question 123:")
    settled(tab, "1–1 of 1 samples")
    tab.fill("#sample-search", "no such words")
    settled(tab, "No sample fits.")
    tab.fill("#sample-search", "")
    tab.select_option("#pick-verdict", "baseline:orders disagree")
    settled(tab, "1–1 of 1 samples")
    tab.select_option("#pick-verdict", "baseline:win")
    settled(tab, "of 63 samples")


def test_the_largest_changes_come_first_and_the_outcomes_are_counted(browser, run):
    with Tab(browser, address(run)) as page:
        texts = page.locator(".delta").all_text_contents()
        sizes = [abs(float(text.split()[-1].replace("−", "-"))) for text in texts]
        assert sizes == sorted(sizes, reverse=True)
        assert len({len(text.split(".")[1]) for text in texts}) == 1  # as many digits in each
        counts = [
            int(count) for count in re.findall(r"\((\d+)\)", " ".join(page.locator("#pick-outcome option").all_text_contents()))
        ]
        scope = page.locator("#sample-scope").text_content()
        assert scope.endswith(f": {counts[1]} gains, {counts[2]} losses, {counts[3]} same")


def test_numbers_of_a_metric_have_the_same_digits(tab):
    listed(tab).nth(3).locator("button").click()
    rows = [row.locator("td.num").all_text_contents() for row in tab.locator(".facts-table tbody tr").all()]
    known = [[text for text in row if text != "–"] for row in rows]
    assert all(len({len(text.partition(".")[2]) for text in row}) == 1 for row in known)
    assert re.fullmatch(r"[01]\.\d\d", known[0][0])
    assert not re.search(r"\d\.\d{4}", tab.locator(".verdicts").text_content())


def test_every_picture_is_loaded_without_scrolling(tab):
    """One that was never seen would be an empty frame on paper."""
    tab.wait_for_function("[...document.images].every(one => one.complete && one.naturalWidth > 0)")


def test_on_paper_only_an_open_sample_is_shown(tab):
    tab.emulate_media(media="print")
    assert not tab.locator("#answers").is_visible()
    tab.emulate_media(media="screen")
    listed(tab).nth(3).locator("button").click()
    tab.emulate_media(media="print")
    assert [tab.locator(f"#sample-list > li:nth-child({i})").is_visible() for i in (3, 4, 5)] == [False, True, False]


def test_the_choice_of_contrast_takes_one_or_all(tab):
    tab.select_option("#pick-method", "i<b>po")
    settled(tab, "of 250 samples")
    assert "i<b>po +SPO against i<b>po" in tab.locator("#sample-scope").text_content()
    for field in ("task", "method", "seed"):
        tab.select_option(f"#pick-{field}", "")
    settled(tab, "1–50 of 2,000 samples")
    tab.click("#page-after")
    settled(tab, "51–100 of 2,000 samples")
    assert not tab.locator("#pick-model").is_visible()  # there is one


def test_a_sample_shows_both_answers_with_key_content(tab, run):
    """The shaded stretches of the answer are those that SPO's own rule finds, each with its degree."""
    listed(tab).nth(3).locator("button").click()
    detail = tab.locator(".detail")
    row = list(read_jsonl(run / "cells" / SPO / "samples.jsonl"))[3]
    assert detail.locator(".side.spo .text").text_content() == row["answer"]
    assert detail.locator(".side.base h4").text_content() == "dpo"
    spans = KeyContent({"gamma": 0.1}, 0).spans(row["answer"])
    marks = detail.locator(".side.spo mark")
    expected = [row["answer"][start:end] for start, end in zip(spans[::3], spans[1::3])]
    assert marks.all_text_contents() == expected != []
    titles = [mark.get_attribute("title") for mark in marks.all()]
    assert titles == [f"key content, gone at degree {degree} of 3" for degree in spans[2::3]]
    texts = detail.text_content()
    for words in ("It needs shade.", "It eats stones.", "True reward", "Win % vs. chosen", "darkest go first", row["id"], SPO):
        assert words in texts
    tab.uncheck("#show-key")
    assert marks.count() == 0
    assert detail.locator(".side.spo .text").text_content() == row["answer"]


def test_words_that_differ_are_marked_on_demand(tab):
    tab.check("#show-words")
    listed(tab).nth(5).locator("button").click()
    assert tab.locator(".side.base ins").all_text_contents() == ["river", "."]  # "river" is shaded, its full stop is not
    assert tab.locator(".side.spo ins").all_text_contents() == ["sea", "."]
    listed(tab).nth(4).locator("button").click()
    assert tab.locator(".side.spo ins").count() == 2  # the other answer is the same long text on both sides


def test_long_texts_are_cut_with_a_note(tab):
    listed(tab).nth(4).locator("button").click()
    assert "Cut here: 2,000 more characters" in tab.locator(".side.spo").text_content()


def test_verdicts_are_shown_in_both_orders(tab):
    listed(tab).nth(2).locator("button").click()
    text = tab.locator(".verdicts").text_content()
    for words in (
        "dpo +SPO against the own baseline: ",
        "orders disagree",
        "dpo +SPO shown first · says dpo +SPO",
        "finish: stop",
    ):
        assert words in text
    assert tab.locator(".reply").all_text_contents()[1] == "the first, again"
    assert tab.locator(".reply").first.text_content() == f"A because {EVIL}"


def test_nothing_that_a_model_wrote_is_run(tab):
    tab.check("#show-words")
    for i in (0, 1):
        listed(tab).nth(i).locator("button").click()
    shown = tab.locator(".side.spo .text")
    assert shown.all_text_contents() == [f"{EVIL} {i}" for i in (0, 1)]
    assert "bell" in "".join(tab.locator(".side.spo mark").all_text_contents())
    tab.wait_for_timeout(200)
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("main img:not(.drawing img)").count() == 0


def test_a_script_that_came_into_the_page_all_the_same_would_not_run(browser, run):
    """The page's own policy: one script with a known hash, nothing else, and no request."""
    opened = Tab(browser, address(run))
    with opened as page:
        page.evaluate(
            "() => { const one = document.createElement('script'); one.text = 'hacked = 5'; document.body.append(one); }"
        )
        page.evaluate(
            "() => { const one = document.createElement('b'); one.setAttribute('onclick', 'hacked = 6'); one.click(); }"
        )
        page.evaluate("() => { new Image().src = 'http://127.0.0.1:9/x.png'; fetch('http://127.0.0.1:9/').catch(() => 0); }")
        page.wait_for_timeout(200)
        assert page.evaluate("window.hacked") is None
    assert sum("violates" in text for text in opened.said) >= 4  # script, handler, picture, request


def test_keys_move_open_close_and_search(tab):
    where = "document.activeElement.closest('li')?.dataset.sample"
    tab.keyboard.press("j")
    assert tab.evaluate(where) == f"{SPO}/{ID(0)}"
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("j")
    tab.keyboard.press("k")
    assert tab.evaluate(where) == f"{SPO}/{ID(1)}"
    tab.keyboard.press("Enter")
    assert tab.locator(".detail").count() == 1
    assert tab.evaluate("location.hash") == f"#sample={SPO}/{ID(1)}"
    tab.keyboard.press("Escape")
    assert tab.locator(".detail").count() == 0
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "sample-search"
    tab.keyboard.type("j/k")
    assert tab.locator("#sample-search").input_value() == "j/k"
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.activeElement.id") != "sample-search"


def test_skip_link_comes_first(tab):
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().top") >= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_scrolls_in_one_direction(browser, run, scheme):
    with Tab(browser, address(run, f"#sample={SPO}/{ID(1)}"), width=390, scheme=scheme) as page:
        page.wait_for_selector(".detail")
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.querySelector('.facts-table').getBoundingClientRect().right") <= 390
        assert page.evaluate("document.querySelector('#table-main').parentNode.querySelector('.scroll').scrollWidth") > 390


def test_a_wide_screen_holds_every_table_in_its_frame(tab):
    tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1300


def test_a_link_opens_its_sample(browser, run):
    cell = SPO.replace("-s0", "-s1")
    with Tab(browser, address(run, f"#sample={cell}/controlled_dia-221")) as page:
        page.wait_for_selector(".detail")
        assert page.evaluate("document.activeElement.closest('li').dataset.sample") == f"{cell}/controlled_dia-221"
        assert page.locator("#pick-seed").input_value() == "1"
        assert page.locator(".detail .foot a").get_attribute("href") == f"#sample={cell}/controlled_dia-221"
        assert 0 <= page.locator(".detail").bounding_box()["y"] < 900


@pytest.mark.parametrize("link", ["#sample=nothing/here", f"#sample={SPO}/nobody", f"#sample={SPO}/%E0%A4%A"])
def test_a_link_to_a_sample_that_is_not_there_says_so(browser, run, link):
    with Tab(browser, address(run, link)) as page:
        settled(page, "is not in this page")
        assert listed(page).count() == 50
