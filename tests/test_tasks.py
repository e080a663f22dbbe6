"""The data tasks: what a record means, which split it is in, and how every fault is named."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from spo_bench.errors import InputError
from spo_bench.plugins import find_tasks, get_task

HH = "\n\nHuman: {}\n\nAssistant: {}"


def write(folder: Path, rows, name: str = "pairs.jsonl") -> str:
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


def pair(number: int = 0, **fields):
    return {"prompt": f"question {number}", "chosen": f"good {number}", "rejected": f"bad {number}", **fields}


def load_all(data: str, task: str = "dialogue", splits=("train", "heldout", "eval")):
    loaded = get_task(task, data)
    return sorted((row for split in splits for row in loaded.load(split, None, 0)), key=lambda row: row.number)


def message(data: str, task: str = "dialogue") -> str:
    with pytest.raises(InputError) as caught:
        load_all(data, task)
    return str(caught.value)


# What a record means.


def test_hh_transcripts_share_everything_but_the_last_answer(tmp_path):
    start = HH.format("Hello", "Hi.") + "\n\nHuman: How are you?\n\nAssistant:"
    (row,) = load_all(write(tmp_path, [{"chosen": start + " Well, thanks.", "rejected": start + " No."}]))
    assert row.prompt == (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "How are you?"},
    )
    assert (row.chosen, row.rejected, row.unusable) == ("Well, thanks.", "No.", None)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": " Why? "}, ["user: Why?"]),
        ({"prompt": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"}, ["user: A", "assistant: B", "user: C"]),
        ({"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}, ["system: S", "user: U"]),
        ({"prompt": [{"role": "user", "content": "A"}, {"role": "user", "content": "B"}]}, ["user: A\n\nB"]),
        ({"prompt": "Q\n\nAssistant: is a word here"}, ["user: Q\n\nAssistant: is a word here"]),
    ],
)
def test_a_prompt_is_text_or_messages(tmp_path, fields, prompt):
    (row,) = load_all(write(tmp_path, [pair(**fields)]))
    assert [f"{m['role']}: {m['content']}" for m in row.prompt] == prompt
    assert (row.chosen, row.rejected, row.unusable) == ("good 0", "bad 0", None)


@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_answers_are_text_or_messages(tmp_path, with_prompt, whole):
    """With whole dialogues the prompt is what they share; with answers alone it must stand beside them."""
    question = [{"role": "user", "content": "Q"}]
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    row = {side: (question if whole else []) + messages for side, messages in answers.items()} | (
        {"prompt": "Q"} if with_prompt else {}
    )
    data = write(tmp_path, [row])
    if not whole and not with_prompt:
        assert "field 'prompt': missing" in message(data)
        return
    (loaded,) = load_all(data)
    assert loaded.prompt == ({"role": "user", "content": "Q"},)
    assert (loaded.chosen, loaded.rejected, loaded.unusable) == ("chosen", "rejected", None)


def test_tldr_comparisons_take_the_chosen_summary(tmp_path):
    info = {"id": "t3_1", "post": "Long text.", "title": "A title", "subreddit": "tifu", "article": None}
    rows = [
        {"info": info, "summaries": [{"text": " first "}, {"text": "second"}], "choice": c, "extra": {"confidence": 8}}
        for c in (0, 1)
    ]
    one, two = load_all(write(tmp_path, rows), "summarization")
    assert one.prompt[0]["content"] == "SUBREDDIT: r/tifu\n\nTITLE: A title\n\nPOST: Long text.\n\nTL;DR:"
    assert [(one.chosen, one.rejected), (two.chosen, two.rejected)] == [("first", "second"), ("second", "first")]
    assert (one.domain, one.meta, one.cluster == two.cluster, one.cluster is None) == ("tifu", {"confidence": 8}, True, False)
    news = {"article": "News.", "post": None, "title": None, "subreddit": None}
    rows = [{"info": news, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1}]
    (row,) = load_all(write(tmp_path, rows), "summarization")
    assert row.prompt[0]["content"] == "POST: News.\n\nTL;DR:"


def test_scores_and_domain_are_kept(tmp_path):
    (row,) = load_all(write(tmp_path, [pair(score_chosen=7, score_rejected=2.5, domain="cooking")]))
    assert (row.scores, row.domain) == ((7.0, 2.5), "cooking")


def several(*answers: tuple[str, float], number: int = 0, **fields):
    texts, scores = zip(*answers)
    return {"prompt": f"question {number}", "responses": list(texts), "scores": list(scores), **fields}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_scored_responses_give_the_best_the_worst_and_the_others(tmp_path, ending):
    row = several((" b ", 2), ("a", 3), ("d", -1), ("c", 0.5), domain="cooking")
    path = tmp_path / f"pairs.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        write(tmp_path, [row], path.name)
    (loaded,) = load_all(str(path))
    assert (loaded.chosen, loaded.rejected, loaded.scores, loaded.domain) == ("a", "d", (3.0, -1.0), "cooking")
    assert loaded.more == (("b", 2.0), ("c", 0.5))
    assert loaded.unusable is None


def test_demonstrations_have_no_further_answers(tmp_path):
    data = write(tmp_path, [several(("a", 2), ("b", 1), ("c", 0), number=n) for n in range(30)])
    task = get_task("dialogue", data)
    assert {row.more for row in task.load("sft", None, 0)} == {()}
    assert {row.more for row in task.load("train", None, 0)} == {(("b", 1.0),)}


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "parquet"])
def test_every_file_form_gives_the_same_rows(tmp_path, ending):
    rows = [pair(n) for n in range(40)]
    expected = load_all(write(tmp_path, rows, "expected.jsonl"))
    path = tmp_path / f"pairs.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        write(tmp_path, rows, path.name)
    assert load_all(str(path)) == expected


def test_a_hub_set_with_its_own_test_split_is_evaluated_on_it(tmp_path, monkeypatch):
    """The hub's client takes a folder in place of a hub set, so the real client runs here without a network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "name" / "part"
    folder.mkdir(parents=True)
    write(folder, [pair(n) for n in range(60)], "train.jsonl")
    write(folder, [pair(n) for n in (3, 100, 101)], "test.jsonl")
    task = get_task("dialogue", "org/name:part")
    assert sorted(row.number for row in task.load("eval", None, 0)) == [1, 2, 3]
    others = [*task.load("train", None, 0), *task.load("heldout", None, 0)]
    assert len(others) == 60
    assert [(row.number, row.unusable) for row in others if row.unusable] == [(4, "its prompt is also in the test split")]
    content = task.identity()["data"]
    assert get_task("dialogue", "org/name:part").identity()["data"] == content
    write(folder, [pair(4)], "test.jsonl")
    assert get_task("dialogue", "org/name:part").identity()["data"] != content


# Content faults: the row is there, with its reason.

UNUSABLE = [
    (pair(chosen="  "), "chosen is empty"),
    (pair(rejected=""), "rejected is empty"),
    (pair(prompt=" "), "prompt is empty"),
    (pair(prompt=[]), "prompt is empty"),
    (pair(chosen="same", rejected=" same "), "chosen and rejected are identical"),
    (pair(chosen="half \ud800"), "lone surrogate"),
    (pair(prompt=[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]), "does not end with the user's turn"),
    (
        pair(prompt=[{"role": "assistant", "content": "A"}, {"role": "user", "content": "Q"}]),
        "does not begin with the user's turn",
    ),
    (
        pair(prompt=[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": ""}]),
        "last turn",
    ),
    ({"chosen": HH.format("one", "x"), "rejected": HH.format("two", "y")}, "no common prompt"),
    ({"chosen": HH.format("one", "x") + HH.format("b", "c"), "rejected": HH.format("one", "y")}, "no common prompt"),
    ({"chosen": HH.format("one", "x") + "\n\nAssistant: again", "rejected": HH.format("one", "y")}, "no common prompt"),
    ({"chosen": "before" + HH.format("one", "x"), "rejected": HH.format("one", "y")}, "no common prompt"),
    ({"chosen": HH.format("one", ""), "rejected": HH.format("one", "y")}, "chosen is empty"),
    ({"chosen": HH.format("one", "x"), "rejected": HH.format("one", "x")}, "chosen and rejected are identical"),
    ({"chosen": HH.format("", "x"), "rejected": HH.format("", "y")}, "prompt is empty"),
    ({"prompt": "Q", "responses": ["a", "b", "c"], "scores": [1, 1, 1.0]}, "have one score"),
    ({"prompt": "Q", "responses": ["a", " ", "c"], "scores": [3, 2, 1]}, "a response is empty"),
    ({"prompt": "Q", "responses": ["a", "\ud800", "c"], "scores": [3, 2, 1]}, "lone surrogate"),
    ({"chosen": HH.format("q", "a") + "\n\nHuman: x", "rejected": HH.format("q", "a") + "\n\nHuman: y"}, "assistant's turn"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE, ids=[str(number) for number in range(len(UNUSABLE))])
def test_content_that_cannot_be_used_is_a_reason_not_an_error(tmp_path, row, reason):
    rows = load_all(write(tmp_path, [pair(1), row]))
    assert len(rows) == 2
    assert [r.number for r in rows if r.unusable] == [2]
    assert reason in rows[1].unusable


def test_the_split_sft_asks_for_the_demonstration_alone(tmp_path):
    rows = (
        [pair(n) for n in range(30)]
        + [pair(30 + n, rejected="") for n in range(30)]
        + [pair(60 + n, chosen="") for n in range(30)]
    )
    task = get_task("dialogue", write(tmp_path, rows))
    train = {row.number: row for row in task.load("train", None, 0)}
    sft = {row.number: row for row in task.load("sft", None, 0)}
    assert set(sft) == set(train)
    assert {row.rejected for row in sft.values()} == {""}
    assert all((row.unusable is None) == (row.number <= 60) for row in sft.values())
    assert all((row.unusable is None) == (row.number <= 30) for row in train.values())
    assert not {row.id for row in sft.values() if row.unusable is None} & {
        row.id for row in train.values() if row.unusable is None
    }


# Structural faults: refused, with file, row and field.

STRUCTURAL = [
    (b'{"prompt": "a", "chosen": "b"}\n', ["row 1", "'rejected'", "missing"]),
    (b'{"prompt": "a", "rejected": "b"}\n', ["row 1", "'chosen'", "missing"]),
    (b'{"chosen": "a", "rejected": "b"}\n', ["row 1", "'prompt'", "missing", "transcript"]),
    (b'{"prompt": "a", "chosen": null, "rejected": "b"}\n', ["row 1", "'chosen'", "null", "text"]),
    (b'{"prompt": 3, "chosen": "a", "rejected": "b"}\n', ["row 1", "'prompt'", "number"]),
    (b'{"prompt": "a", "chosen": "a", "rejected": ["b"]}\n', ["row 1", "'chosen'", "list of messages"]),
    (
        b'{"prompt": [{"role": "robot", "content": "a"}], "chosen": "a", "rejected": "b"}\n',
        ["'prompt[0].role'", "'robot'", "assistant"],
    ),
    (b'{"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}\n', ["'prompt[0].content'", "missing"]),
    (b'{"prompt": ["a"], "chosen": "a", "rejected": "b"}\n', ["'prompt[0]'", "text", "object"]),
    (b'{"prompt": "a", "chosen": "a", "rejected": "b", "article_id": 1.5}\n', ["'article_id'", "number"]),
    (b'{"prompt": "a", "chosen": "a", "rejected": "b", "score_chosen": "x", "score_rejected": 1}\n', ["'score_chosen'", "text"]),
    (
        b'{"prompt": "a", "chosen": "a", "rejected": "b", "score_chosen": NaN, "score_rejected": 1}\n',
        ["'score_chosen'", "finite"],
    ),
    (b'{"info": {}, "summaries": [{"text": "a"}], "choice": 0}\n', ["'summaries'", "1 items"]),
    (b'{"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 2}\n', ["'choice'", "2", "0 or 1"]),
    (b'{"info": {"post": "p"}, "summaries": [{"text": "a"}, {"txt": "b"}], "choice": 1}\n', ["'summaries[1].text'", "missing"]),
    (b'{"info": {}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1}\n', ["'info.article'", "missing"]),
    (b'{"prompt": "a", "responses": ["a", "b"]}\n', ["row 1", "'scores'", "missing"]),
    (b'{"prompt": "a", "responses": "ab", "scores": [1, 2]}\n', ["'responses'", "text", "list"]),
    (b'{"prompt": "a", "responses": ["a", 3], "scores": [1, 2]}\n', ["'responses[1]'", "number", "text"]),
    (b'{"prompt": "a", "responses": ["a", "b"], "scores": [1, NaN]}\n', ["'scores[1]'", "finite"]),
    (b'{"prompt": "a", "responses": ["a", "b"], "scores": [1, true]}\n', ["'scores[1]'", "truth value"]),
    (b'{"prompt": "a", "responses": ["a", "b"], "scores": 1}\n', ["'scores'", "a number", "list"]),
    (b'{"prompt": "a", "responses": ["a", "b"], "scores": [1, 2, 3]}\n', ["'scores'", "3 items, 2 responses"]),
    (b'{"prompt": "a", "responses": ["a"], "scores": [1]}\n', ["'responses'", "1 items", "two"]),
    (b'{"responses": ["a", "b"], "scores": [1, 2]}\n', ["'prompt'", "missing"]),
    (b'{"prompt": "a", "chosen": "a", "rejected": "b"}\n\n[1, 2]\n', ["row 3", "a list", "object"]),
    (b'{"prompt": "a", "chosen": "a", "rejected": "b"}\n{"prompt": \n', ["row 2", "not JSON"]),
    (b'{"prompt": "a", "chosen": "a", "rejected": "b"}\n{"prompt": "\xff"}\n', ["row 2", "UTF-8"]),
    (b"", ["empty"]),
    (b"\n\n", ["empty"]),
]


@pytest.mark.parametrize(("content", "words"), STRUCTURAL, ids=[str(content)[:80] for content, _ in STRUCTURAL])
def test_structural_faults_name_file_row_and_field(tmp_path, content, words):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    found = message(str(path))
    for word in [str(path), *words]:
        assert word in found


FILES = [
    ("pairs.jsonl.gz", b"not gzip", ["gzip"]),
    ("pairs.jsonl.gz", gzip.compress(b"{}" * 1000, mtime=0)[:-20], ["gzip"]),
    ("pairs.json", b'{"prompt": "a"}', ["one list"]),
    ("pairs.json", b"[1]", ["row 1", "a number"]),
    ("pairs.json", b"[]", ["empty"]),
    ("pairs.json", b"", ["empty"]),
    ("pairs.parquet", b"PAR?", ["parquet"]),
    ("pairs.csv", b"a,b", [".jsonl", "convert"]),
]


@pytest.mark.parametrize(("name", "content", "words"), FILES)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    found = message(str(tmp_path / name))
    for word in [name, *words]:
        assert word in found


def test_a_missing_file_is_named_with_the_nearest(tmp_path):
    data = write(tmp_path, [pair()])
    assert f"did you mean '{data}'" in message(str(tmp_path / "pair.jsonl"))
    assert "no folder" in message(str(tmp_path / "nowhere" / "pairs.jsonl"))
    assert "pairs.jsonl" in message(str(tmp_path))
    assert "is not there" in message("relative.jsonl")


def test_a_hub_set_without_a_network_says_what_to_do(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = message("no-such-organisation/no-such-set")
    for word in ("no-such-organisation/no-such-set", "HF_HUB_OFFLINE", "give its path"):
        assert word in found


# Splits, order, identity.


def test_splits_share_no_prompt_and_no_cluster(tmp_path):
    """Prompts 0..299 in three rows each; even prompts share an article with their neighbour, which has another text."""
    rows = [pair(n, chosen=f"good {n} {k}", article_id=n // 2) for n in range(300) for k in range(3)]
    task = get_task("dialogue", write(tmp_path, rows))
    parts = {split: task.load(split, None, 0) for split in ("train", "heldout", "eval")}
    assert sum(map(len, parts.values())) == len(rows)
    for values in (lambda row: row.prompt[0]["content"], lambda row: row.cluster):
        seen = [{values(row) for row in part} for part in parts.values()]
        assert sum(map(len, seen)) == len(set.union(*seen))
    assert {row.cluster for row in parts["eval"]} <= {f"cluster/{n}" for n in range(150)}


def test_clusters_that_share_a_prompt_are_one(tmp_path):
    """Articles a-b and b-c share a prompt each, so all rows are in one split and one cluster."""
    prompts = [("a", "p"), ("b", "p"), ("b", "q"), ("c", "q"), ("c", "r")]
    rows = [pair(n, prompt=prompt, article_id=article) for n, (article, prompt) in enumerate(prompts)]
    task = get_task("dialogue", write(tmp_path, rows))
    sizes = [len(task.load(split, None, 0)) for split in ("train", "heldout", "eval")]
    assert sorted(sizes) == [0, 0, 5]
    assert {row.cluster for row in load_all(str(tmp_path / "pairs.jsonl"))} == {"cluster/a"}


def test_shares_of_the_splits(tmp_path):
    """2,000 prompts: the standard deviation of a 15 % share is .008; four of them are allowed."""
    task = get_task("dialogue", write(tmp_path, [pair(n) for n in range(2000)]))
    shares = {split: len(task.load(split, None, 0)) / 2000 for split in ("train", "heldout", "eval")}
    assert abs(shares["eval"] - 0.15) < 0.032
    assert abs(shares["heldout"] - 0.15) < 0.032
    assert sum(shares.values()) == 1


def test_a_row_stays_in_its_split_when_others_come_and_go(tmp_path):
    def split_of(rows, name):
        task = get_task("dialogue", write(tmp_path, rows, name))
        return {row.id: split for split in ("train", "heldout", "eval") for row in task.load(split, None, 0)}

    whole, part = split_of([pair(n) for n in range(200)], "a.jsonl"), split_of([pair(n) for n in range(150, 20, -1)], "b.jsonl")
    assert len(part) == 130
    assert part.items() <= whole.items()


def test_a_smaller_limit_is_the_beginning_of_a_larger_one(tmp_path):
    task = get_task("dialogue", write(tmp_path, [pair(n) for n in range(300)]))
    whole = task.load("train", None, 7)
    assert task.load("train", 20, 7) == whole[:20] == task.load("train", 50, 7)[:20]
    assert task.load("train", 20, 8) != whole[:20]
    assert [row.number for row in whole] != sorted(row.number for row in whole)
    assert task.load("train", 10_000, 7) == whole


def test_ids_are_unique_and_come_from_the_content(tmp_path):
    rows = [pair(0), pair(0), pair(0), pair(1), {"chosen": HH.format("one", "x"), "rejected": HH.format("two", "y")}]
    loaded = load_all(write(tmp_path, rows))
    ids = [row.id for row in loaded]
    assert len(set(ids)) == 5
    assert ids[1:3] == [f"{ids[0]}-2", f"{ids[0]}-3"]
    assert load_all(write(tmp_path, [pair(0)], "other.jsonl"))[0].id == ids[0]


def test_rows_of_one_prompt_share_a_cluster_and_others_stand_alone(tmp_path):
    rows = load_all(write(tmp_path, [pair(0), pair(0, chosen="other"), pair(1)]))
    assert rows[0].cluster == rows[1].cluster is not None
    assert rows[2].cluster is None
    assert Counter(row.cluster for row in rows)[None] == 1


def test_identity_is_the_content_not_the_path(tmp_path):
    one, same = write(tmp_path, [pair(0)], "one.jsonl"), write(tmp_path, [pair(0)], "same.jsonl")
    other = write(tmp_path, [pair(1)], "other.jsonl")
    identities = [get_task("dialogue", data).identity() for data in (one, same, other)]
    assert identities[0] == identities[1] != identities[2]
    assert str(tmp_path) not in json.dumps(identities)
    assert get_task("reward_model", one).identity() != identities[0]


@pytest.mark.parametrize("name", ["dialogue", "summarization", "reward_model"])
def test_tasks_bring_a_judge_prompt_with_its_slots(name):
    cls = find_tasks()[name].cls
    assert cls.judge_prompt.format(prompt="P-P", a="A-A", b="B-B").count("-") >= 3
    assert cls.summary
    assert cls.needs_data
    assert not cls.controlled
    assert ("rouge_l" in cls.metrics) == (name == "summarization")
