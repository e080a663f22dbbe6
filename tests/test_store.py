"""The store: complete or absent, once, and keys made of what they must be made of."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from spo_bench.files import file_hash
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import RETRY, Store, digest
from spo_bench.store.hashes import HashCache


def test_a_failed_build_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def build(part: Path) -> None:
        (part / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.make("train", "k", {}, build)
    assert not store.has("train", "k")
    assert not list((tmp_path / "train").iterdir())


def test_a_directory_without_done_is_made_again(tmp_path):
    store = Store(tmp_path)
    store.path("train", "k").mkdir(parents=True)
    (store.path("train", "k") / "old").write_text("x")
    store.make("train", "k", {"a": 1}, lambda part: (part / "new").write_text("y"))
    assert sorted(p.name for p in store.path("train", "k").iterdir()) == ["SEAL", "new"]
    assert store.identity("train", "k") == {"a": 1}


def _slow(root: str, marks: str) -> None:
    def build(part: Path) -> None:
        time.sleep(0.3)
        with open(marks, "a") as handle:
            handle.write("built\n")
        (part / "x").write_text("x")

    Store(Path(root)).make("sft", "k", {}, build)


def test_two_processes_make_an_artifact_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    marks = tmp_path / "marks"
    workers = [context.Process(target=_slow, args=(str(tmp_path / "store"), str(marks))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert marks.read_text() == "built\n"


def test_keys_depend_on_config_version_and_inputs_and_on_nothing_local():
    data = Stage("data", 1, {"seed": 0})
    base = Stage("train", 1, {"seed": 0}, {"data": data})
    assert base.key == Stage("train", 1, {"seed": 0}, {"data": data}, local={"device": "cuda:1"}).key
    others = [
        Stage("train", 2, {"seed": 0}, {"data": data}),
        Stage("train", 1, {"seed": 1}, {"data": data}),
        Stage("train", 1, {"seed": 0}, {"data": Stage("data", 1, {"seed": 1})}),
        Stage("train", 1, {"seed": 0}, {"other": data}),
    ]
    assert len({base.key, *(stage.key for stage in others)}) == 5


def test_digest_does_not_depend_on_order_and_refuses_nan():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


def test_hash_cache_notices_a_changed_file(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    first = HashCache(tmp_path / "store").hash(file)
    assert first == file_hash(file) == HashCache(tmp_path / "store").hash(file)
    file.write_bytes(b"three")
    assert HashCache(tmp_path / "store").hash(file) == file_hash(file) != first


def test_an_artifact_that_is_not_final_says_so_until_it_is_removed(tmp_path):
    store = Store(tmp_path)
    assert store.to_retry("judge", "k") == 0
    store.make("judge", "k", {}, lambda part: (part / RETRY).write_text("3\n"))
    store.make("judge", "other", {}, lambda part: (part / "verdicts").write_text("all"))
    assert (store.has("judge", "k"), store.to_retry("judge", "k"), store.to_retry("judge", "other")) == (True, 3, 0)
    for _ in range(2):
        store.remove("judge", "k")
        assert (store.has("judge", "k"), store.to_retry("judge", "k")) == (False, 0)
    assert [path.name for path in (tmp_path / "judge").iterdir()] == ["other"]
