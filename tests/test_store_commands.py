"""spo-bench store ls, verify and gc, and why a plan would make what it would: the real commands on real stores."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
from conftest import SMALL_SPEC

from spo_bench.files import file_hash, read_json, write_json
from spo_bench.judging.store import ReplyStore
from spo_bench.stages import registry
from spo_bench.store.artifacts import Store
from spo_bench.store.claims import claim, claims, clearing
from spo_bench.store.hashes import FILE_HASHES, HashCache
from spo_bench.store.locks import machine_of, owner
from spo_bench.store.opening import look
from spo_bench.store.sealed import OLD_SEAL, SEAL, seal

KEYS = [f"{number:032x}" for number in range(16)]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def dead() -> str:
    """The name of an owner that is no more: a process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return f"{machine_of(owner())}_{process.pid}_0"


def fill(store: Store, kind: str, *numbers: int) -> None:
    """Make entries of some size, with a policy in them."""
    for number in numbers:

        def build(part: Path, number: int = number) -> None:
            (part / "policy").mkdir()
            (part / "policy" / "weights").write_bytes(bytes([number]) * 1000)
            (part / "rows.jsonl").write_text('{"id": 1}\n')

        store.make(kind, KEYS[number], {"kind": kind, "number": number}, build)


def begin(store: Store, out: Path, uses: list[tuple[str, int]], dead: str, links: tuple[int, ...] = ()) -> None:
    """Leave what a run leaves that ended long ago: its claim, its record, its cells with links to their policies."""
    write_json(out / "run.json", {"purse": f"purse of {out.name}"})
    claim(store, out, f"purse of {out.name}", [(kind, KEYS[number]) for kind, number in uses])
    for one in claims(store)[0]:
        write_json(one.path, {**read_json(one.path), "owner": dead})
    for number in links:
        cell = out / "cells" / f"cell-{number}"
        cell.mkdir(parents=True)
        (cell / "policy").symlink_to(store.path("train", KEYS[number]) / "policy", target_is_directory=True)


def make_older(store: Store, kind: str, number: int) -> None:
    """Turn an entry into what an older version left."""
    folder = store.path(kind, KEYS[number])
    identity = store.identity(kind, KEYS[number])
    (folder / SEAL).unlink()
    write_json(folder / OLD_SEAL, {"kind": kind, "key": KEYS[number], "identity": identity})


def there(store: Store) -> set[str]:
    """Names of the entries, such as train/3."""
    return {f"{one.kind}/{KEYS.index(one.key)}" for one in look(store).entries}


# --- ls -----------------------------------------------------------------------------------------------------------------


def test_ls_shows_what_there_is(store, tmp_path, dead, command):
    fill(store, "train", 1, 2, 3)
    fill(store, "data", 4)
    begin(store, tmp_path / "run", [("train", 1), ("train", 2), ("data", 4)], dead)
    begin(store, tmp_path / "other", [("train", 1)], dead)
    make_older(store, "train", 3)
    (store.path("train", KEYS[2]) / "rows.jsonl").write_text("")
    (store.root / "train" / f"{KEYS[5]}.{dead}.part").mkdir()
    (store.root / "train" / f"{KEYS[6]}.{owner()}.part").mkdir()
    store.checkpoint("train", KEYS[6]).mkdir(parents=True)
    store.fail("train", KEYS[7], "loss is NaN")
    code, output, _ = command("store", "ls", "--json")
    found = json.loads(output)
    assert code == 0
    train = found["kinds"]["train"]
    assert {name: train[name] for name in ("entries", "claimed", "runs", "damaged", "older")} == {
        "entries": 3,
        "claimed": 2,
        "runs": 2,
        "damaged": 1,
        "older": 1,
    }
    assert train["bytes"] > 3000
    assert found["damaged"] == {f"train/{KEYS[2]}": "rows.jsonl has 0 bytes, and 10 when it was made"}
    assert [one["left"] for one in found["unfinished"]] == [True, False]
    assert [one["key"] for one in found["checkpoints"]] == [KEYS[6]]
    assert [one["key"] for one in found["failures"]] == [KEYS[7]]
    assert {Path(one["out"]).name: (one["stands"], one["entries"]) for one in found["runs"]} == {
        "run": (True, 3),
        "other": (True, 1),
    }
    code, output, _ = command("store", "ls")
    for text in (
        "train",
        "older: 1 entries",
        "unfinished: 2",
        "of 1 the owner is dead",
        "checkpoints: 1",
        "failures: 1",
        "claims 3",
    ):
        assert text in output
    assert f"damaged: train/{KEYS[2]}: rows.jsonl has 0 bytes" in output


def test_ls_of_a_kind_shows_every_entry(store, tmp_path, dead, command):
    fill(store, "train", 1, 2)
    fill(store, "data", 4)
    begin(store, tmp_path / "run", [("train", 1)], dead)
    make_older(store, "train", 2)
    entries = json.loads(command("store", "ls", "--kind", "train", "--json")[1])["entries"]
    assert [(one["key"], one["runs"], one["older"], one["damaged"]) for one in entries] == [
        (KEYS[1], [str(tmp_path / "run")], False, None),
        (KEYS[2], [], True, None),
    ]
    assert "of an older version" in command("store", "ls", "--kind", "train")[1]
    code, _, errors = command("store", "ls", "--kind", "tain")
    assert code == 2
    assert "did you mean 'train'?" in errors


@pytest.mark.parametrize("name", ["ls", "verify", "gc"])
def test_a_store_that_is_not_there_is_bad_input_and_is_not_made(name, tmp_path, command):
    code, output, errors = command("store", name, "--store", tmp_path / "none")
    assert (code, output) == (2, "")
    assert "there is no store at" in errors
    assert not (tmp_path / "none").exists()


# --- verify -------------------------------------------------------------------------------------------------------------


def everything(store: Store, tmp_path: Path, dead: str) -> None:
    """A store with a thing of every sort."""
    fill(store, "train", 1, 2)
    fill(store, "data", 3)
    make_older(store, "train", 2)
    begin(store, tmp_path / "run", [("train", 1), ("data", 3)], dead)
    kept = store.checkpoint("train", KEYS[5]) / "1"
    kept.mkdir(parents=True)
    (kept / "00000.safetensors").write_bytes(b"x" * 100)
    seal(kept, {"made_by": {}, "values": {}})
    store.fail("train", KEYS[6], "loss is NaN")
    weights = tmp_path / "weights"
    weights.write_bytes(b"w" * 100)
    HashCache(store.root).hash(weights)
    with ReplyStore(store.root / "judge.sqlite") as replies:
        for number in range(200):
            replies.keep(f"{number:064}", {"text": "[[A]]" * 20})


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def damage(store: Store, tmp_path: Path) -> dict[str, str]:
    """Damage one of every sort; return what verify has to say of each, by its name."""
    overwrite(store.path("train", KEYS[1]) / "policy" / "weights", 500, b"\0")
    overwrite(store.checkpoint("train", KEYS[5]) / "1" / "00000.safetensors", 50, b"\0")
    overwrite(store.root / "failures" / f"train-{KEYS[6]}", 0, b"[")
    (one,), _ = claims(store)
    one.path.write_bytes(one.path.read_bytes()[:-5])
    known = read_json(store.root / FILE_HASHES)
    write_json(store.root / FILE_HASHES, {mark: "0" + hashed[1:] for mark, hashed in known.items()})
    overwrite(store.root / "judge.sqlite", 8192, b"\xff" * 4096)
    return {
        f"train/{KEYS[1]}": "policy/weights has another content than when it was made",
        f"checkpoints/train-{KEYS[5]}/1": "00000.safetensors has another content",
        f"failures/train-{KEYS[6]}": "it cannot be read",
        f"runs/{one.path.name}": "it cannot be read",
        FILE_HASHES: f"'{tmp_path / 'weights'}' has another content than what is remembered",
        "judge.sqlite": "",
    }


def test_verify_finds_nothing_wrong_with_a_sound_store_and_changes_nothing(store, tmp_path, dead, command):
    everything(store, tmp_path, dead)
    before = {path: file_hash(path) for path in store.root.rglob("*") if path.is_file()}
    code, output, _ = command("store", "verify")
    assert code == 0, output
    assert "2 entries read, 0 damaged" in output
    assert "1 entries of an older version have no checksums" in output
    after = {path: file_hash(path) for path in store.root.rglob("*") if path.is_file() and "judge.sqlite-" not in path.name}
    assert after == before


def test_verify_names_all_damage_and_remove_removes_what_can_be_made_again(store, tmp_path, dead, command):
    everything(store, tmp_path, dead)
    expected = damage(store, tmp_path)
    code, output, _ = command("store", "verify", "--json")
    assert code == 1
    found = {one["name"]: one["why"] for one in json.loads(output)["damaged"]}
    assert found.keys() == expected.keys()
    for name, why in expected.items():
        assert why in found[name]
    code, output, _ = command("store", "verify", "--remove")
    assert code == 1
    assert output.count("damaged: ") == 6
    assert output.count("; removed") == 4
    assert "replies that were paid for are never removed" in output
    assert not store.path("train", KEYS[1]).exists()
    assert not (store.checkpoint("train", KEYS[5]) / "1").exists()
    assert store.path("data", KEYS[3]).exists()
    assert (store.root / "judge.sqlite").exists()
    left = json.loads(command("store", "verify", "--json")[1])["damaged"]
    assert {one["what"] for one in left} == {"claim", "database"}


def test_verify_says_which_runs_use_what_is_damaged(store, tmp_path, dead, command):
    fill(store, "train", 1)
    begin(store, tmp_path / "run", [("train", 1)], dead)
    (store.path("train", KEYS[1]) / SEAL).unlink()
    code, output, _ = command("store", "verify")
    assert code == 1
    assert f"damaged: train/{KEYS[1]}: SEAL is missing; used by {tmp_path / 'run'}" in output
    assert "the next run that needs it makes it again" in output


def test_what_is_being_made_is_left_to_its_maker(store, command):
    fill(store, "train", 1)
    overwrite(store.path("train", KEYS[1]) / "rows.jsonl", 0, b"x")
    with store.making("train", KEYS[1]):
        assert "another process is using it" in command("store", "verify", "--remove")[1]
        assert f"left, another process is using it: entry {store.path('train', KEYS[1])}" in command("store", "gc")[1]
    assert there(store) == {"train/1"}
    assert "removed: 1" in command("store", "gc")[1]
    assert there(store) == set()


# --- gc -----------------------------------------------------------------------------------------------------------------


def test_gc_removes_what_no_run_refers_to_and_nothing_else(store, tmp_path, dead, command):
    fill(store, "train", 1, 2, 3, 4)
    fill(store, "data", 5, 6)
    begin(store, tmp_path / "one", [("train", 1), ("data", 5)], dead, links=(1, 4))  # 4: of a cell that it has no more
    begin(store, tmp_path / "two", [("train", 2), ("data", 5)], dead, links=(2,))
    parts = {name: store.root / "train" / f"{KEYS[9]}.{name}.part" for name in (dead, owner())}
    for part in parts.values():
        part.mkdir()
    kept = {number: store.checkpoint("train", KEYS[number]) for number in (1, 3, 10)}
    claim(store, tmp_path / "three", "purse of three", [("train", KEYS[10])])  # it is under way: this process made the claim
    for folder in kept.values():
        folder.mkdir(parents=True)
    for number in (10, 11):
        store.fail("train", KEYS[number], "loss is NaN")
    (store.root / "locks" / "train-left").write_text("")
    with ReplyStore(store.root / "judge.sqlite") as replies:
        replies.keep("key", {"text": "paid"})
    before = sorted(str(path) for path in store.root.rglob("*"))
    code, output, _ = command("store", "gc", "--dry-run", "--json")
    planned = json.loads(output)
    assert code == 0
    assert sorted(str(path) for path in store.root.rglob("*")) == before
    assert planned["bytes"] > 2000
    code, output, _ = command("store", "gc", "--json")
    assert code == 0
    assert json.loads(output)["removed"] == planned["removed"]
    assert there(store) == {"train/1", "train/2", "train/4", "data/5"}
    assert [part.exists() for part in parts.values()] == [False, True]
    assert [number for number, folder in kept.items() if folder.exists()] == [10]
    assert store.failure("train", KEYS[10])
    assert store.failure("train", KEYS[11]) is None
    assert list((store.root / "locks").iterdir()) == []
    with ReplyStore(store.root / "judge.sqlite") as replies:
        assert replies.replies(["key"]) == {"key": {"text": "paid"}}
    for link in tmp_path.glob("*/cells/*/policy"):
        assert (link / "weights").is_file()
    assert json.loads(command("store", "gc", "--json")[1])["removed"] == []


def test_a_dry_run_lists_everything_with_its_size(store, command):
    fill(store, "train", 1)
    output = command("store", "gc", "--dry-run")[1]
    assert f"KiB  entry train/{KEYS[1]}: no run refers to it" in output
    assert "would be removed: 1, " in output
    assert there(store) == {"train/1"}


def test_a_run_that_is_not_where_it_was_keeps_its_claim_unless_it_is_forgotten(store, tmp_path, dead, command):
    fill(store, "train", 1, 2)
    begin(store, tmp_path / "here", [("train", 1)], dead)
    begin(store, tmp_path / "moved", [("train", 2)], dead)
    shutil.move(tmp_path / "moved", tmp_path / "elsewhere")
    output = command("store", "gc")[1]
    assert f"kept: the run in {tmp_path / 'moved'} is not where it was; 1 entries, " in output
    assert there(store) == {"train/1", "train/2"}
    output = command("store", "gc", "--forget-missing")[1]
    assert "removed: 2, " in output
    assert there(store) == {"train/1"}
    assert [one.out.name for one in claims(store)[0]] == ["here"]


def test_a_new_run_in_the_place_of_a_deleted_one_takes_its_claim(store, tmp_path, dead, command):
    fill(store, "train", 1, 2)
    begin(store, tmp_path / "run", [("train", 1)], dead)
    shutil.rmtree(tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", {"purse": "another"})
    claim(store, tmp_path / "run", "another", [("train", KEYS[2])])
    command("store", "gc")
    assert there(store) == {"train/2"}


def test_runs_of_one_path_on_two_machines_keep_their_claims(store, tmp_path, dead, command):
    """A shared store, and /home/me/results/quick on both machines."""
    fill(store, "train", 1, 2)
    begin(store, tmp_path / "run", [("train", 1)], f"another-machine_{dead.split('_')[1]}_0")
    write_json(tmp_path / "run" / "run.json", {"purse": "this machine's"})
    claim(store, tmp_path / "run", "this machine's", [("train", KEYS[2])])
    command("store", "gc")
    assert there(store) == {"train/1", "train/2"}


def test_a_claim_that_cannot_be_read_stops_gc(store, tmp_path, dead, command):
    fill(store, "train", 1, 2)
    begin(store, tmp_path / "run", [("train", 1)], dead)
    (one,), _ = claims(store)
    one.path.write_text("{")
    code, output, errors = command("store", "gc")
    assert (code, output) == (2, "")
    assert f"error: the claim {one.path}: it cannot be read" in errors
    assert there(store) == {"train/1", "train/2"}


def test_entries_of_an_older_version_go_unless_a_run_links_to_them(store, tmp_path, dead, command):
    fill(store, "train", 1, 2, 3)
    fill(store, "data", 4)
    begin(store, tmp_path / "run", [("train", 1), ("data", 4)], dead, links=(1,))
    older = tmp_path / "older" / "cells" / "cell"
    older.mkdir(parents=True)
    (older / "policy").symlink_to(store.path("train", KEYS[2]) / "policy")
    for kind, number in (("train", 1), ("train", 2), ("train", 3), ("data", 4)):
        make_older(store, kind, number)
    assert not store.has("train", KEYS[1])
    assert "written by an older version, without checksums" in command("store", "gc", "--dry-run")[1]
    assert command("store", "gc", "--keep", tmp_path / "nothing")[0] == 2
    command("store", "gc", "--keep", tmp_path / "older")
    assert there(store) == {"train/1", "train/2"}
    assert (older / "policy" / "weights").is_file()


def test_a_claim_waits_until_nothing_is_being_removed(store, tmp_path):
    waiting = Thread(target=claim, args=(store, tmp_path / "run", "purse", [("train", KEYS[1])]))
    with clearing(store):
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert claims(store) == ([], {})
    waiting.join(10)
    assert len(claims(store)[0]) == 1


# --- a real run ---------------------------------------------------------------------------------------------------------

SPEC = {**SMALL_SPEC, "methods": ["dpo"], "spo": [False]}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, int]:
    """A folder with a run and its store, which was cleared again and again while the run was under way; and how often."""
    folder, cleared = tmp_path_factory.mktemp("made"), 0
    write_json(folder / "spec.yaml", SPEC)
    options = ["--matrix", folder / "spec.yaml", "--store", folder / "store", "--out", folder / "run", "--jobs", "1"]
    running = subprocess.Popen([sys.executable, "-m", "spo_bench", "run", *map(str, options)], stderr=subprocess.PIPE, text=True)
    from spo_bench.store.clearing import clear

    while running.poll() is None:
        if (folder / "store" / "runs").is_dir():
            clear(Store(folder / "store"), act=True, forget_missing=True)
            cleared += 1
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                running.wait(0.1)
    assert running.returncode == 0, running.communicate()[1]
    return folder, cleared


def test_a_run_under_way_is_safe_from_gc(made, command):
    folder, cleared = made
    assert cleared > 20
    assert command("store", "verify", "--store", folder / "store")[0] == 0
    assert "removed: 0, 0 B" in command("store", "gc", "--store", folder / "store")[1]
    planned = json.loads(command("plan", "--matrix", folder / "spec.yaml", "--store", folder / "store", "--json")[1])
    assert {stage["state"] for stage in planned["stages"]} == {"done"}
    assert all((link / "model.safetensors").is_file() for link in folder.glob("run/cells/*/policy"))


def test_a_finished_run_that_is_started_again_has_its_claim_back(made, tmp_path, command):
    folder = shutil.copytree(made[0], tmp_path / "copy", symlinks=True)
    shutil.rmtree(folder / "store" / "runs")
    write_json(folder / "run" / "run.json", read_json(folder / "run" / "run.json") | {"store": str(folder / "store")})
    options = ["--matrix", folder / "spec.yaml", "--store", folder / "store", "--out", folder / "run", "--jobs", "1"]
    for _ in range(2):
        code, _, errors = command("run", *options)
        assert code == 0, errors
    shutil.rmtree(folder / "store" / "runs")
    assert command("run", *options)[0] == 0
    assert [one.out for one in claims(Store(folder / "store"))[0]] == [folder / "run"]


# --- plan --why ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def why(made, tmp_path, command):
    """Plan a spec with changes in the run's directory, or another; return the table's reasons, explanations by kind, and the text."""

    def ask(store: Path | None = None, out: Path | None = None, **changes):
        write_json(tmp_path / "changed.yaml", {**SPEC, **changes})
        options = ["plan", "--matrix", tmp_path / "changed.yaml", "--store", store or made[0] / "store"]
        options += ["--out", out or made[0] / "run", "--why"]
        planned = json.loads(command(*options, "--json")[1])
        reasons = {}
        for one in planned["why"]:
            reasons.setdefault(one["kind"], one)
        return planned["stages"], reasons, command(*options)[1]

    return ask


@pytest.fixture
def own_store(made, tmp_path) -> Store:
    """A copy of the store that a test may change."""
    return Store(shutil.copytree(made[0] / "store", tmp_path / "own"))


def only(store: Store, kind: str) -> str:
    (key,) = (path.name for path in (store.root / kind).iterdir())
    return key


def test_a_changed_setting_is_told_with_what_follows_from_it(why):
    stages, reasons, text = why(train={**SPEC["train"], "learning_rate": 2e-4}, generate={"max_new_tokens": 9})
    assert reasons.keys() == {"train", "generate", "score", "judge"}
    assert reasons["train"]["changes"] == [{"what": "config.settings.learning_rate", "old": 1e-6, "new": 2e-4}]
    assert reasons["train"]["where"] == "that of the earlier run"
    assert reasons["train"]["state"] == "stale"
    assert any("-dpo-s0" in cell for cell in reasons["train"]["cells"])
    scored = next(stage for stage in stages if stage["stage"] == "score" and "-dpo-s0" in stage["cell"])
    assert "samples changed" in scored["why"]
    assert "settings.learning_rate: 1e-06 → 0.0002" in text
    assert "settings.max_new_tokens: 8 → 9" in text
    assert "input policy changed: see train" in text


def test_a_change_is_followed_to_what_no_cell_names_and_what_is_done(why):
    """The data changed: seeds of the SFT policy's answers are told by what they read."""
    _, reasons, text = why(tasks=[{**SPEC["tasks"][0], "limit": {**SPEC["tasks"][0]["limit"], "eval": 5}}])
    assert reasons["data"]["changes"] == [{"what": "config.limit.eval", "old": 4, "new": 5}]
    assert reasons["generate"]["inputs"]["data"] == {"kind": "data", "key": reasons["data"]["key"]}
    assert "input data changed: see data" in text


def test_changed_code_is_told_by_its_version(why, monkeypatch):
    before = registry.KINDS["train"]
    monkeypatch.setitem(registry.KINDS, "train", (before[0], before[1] + 1))
    stages, reasons, text = why()
    sentence = f"the code that makes it changed: train {before[1]} → {before[1] + 1}"
    assert sentence in text
    assert sentence in next(stage["why"] for stage in stages if stage["stage"] == "train")
    assert reasons["train"]["changes"] == [{"what": "version", "old": before[1], "new": before[1] + 1}]


def test_without_an_earlier_run_the_nearest_in_the_store_is_told(why, tmp_path):
    _, reasons, text = why(out=tmp_path / "new", methods=[{"name": "dpo", "beta": 0.3}])
    assert reasons["train"]["where"] == "the nearest in the store"
    assert reasons["train"]["changes"] == [{"what": "config.method.hyperparameters.beta", "old": 0.1, "new": 0.3}]
    assert "method.hyperparameters.beta: 0.1 → 0.3" in text
    _, reasons, _ = why(store=tmp_path / "empty", out=tmp_path / "new")
    assert {tuple(one["reasons"]) for one in reasons.values()} == {("nothing like it was made before",)}


def test_what_an_earlier_run_used_is_known_from_its_directory_when_it_is_gone(why, own_store):
    shutil.rmtree(own_store.root / "train")
    _, reasons, _ = why(own_store.root)
    assert reasons["train"]["reasons"] == ["the earlier run used it, and it is not in the store any more"]
    _, reasons, _ = why(own_store.root, train={**SPEC["train"], "max_steps": 2})
    assert reasons["train"]["changes"] == [{"what": "config.settings.max_steps", "old": 1, "new": 2}]


def test_older_entries_failures_and_damage_are_told(why, own_store, command):
    train, data, model = (only(own_store, kind) for kind in ("train", "data", "model"))
    identity = own_store.identity("train", train)
    (own_store.path("train", train) / SEAL).unlink()
    write_json(own_store.path("train", train) / OLD_SEAL, {"kind": "train", "key": train, "identity": identity})
    own_store.remove("reference", reference := only(own_store, "reference"))
    own_store.fail("reference", reference, "loss is NaN at step 3")
    (own_store.path("data", data) / "eval.jsonl").write_text("")
    (own_store.path("model", model) / SEAL).unlink()
    _, reasons, text = why(own_store.root)
    told = {kind: reasons[kind]["reasons"][0] for kind in ("train", "reference", "data", "model")}
    assert told["train"] == "it is in the store, but cannot be used: an older version wrote it, without checksums"
    assert told["reference"] == "it failed before: loss is NaN at step 3; --retry-failed tries again"
    assert told["data"].startswith("it is in the store, but cannot be used: eval.jsonl has 0 bytes, and ")
    assert told["model"] == "it is in the store, but cannot be used: it is damaged: SEAL is missing"
    assert reasons["data"]["state"] == "stale"
    for sentence in told.values():
        assert sentence in text
    short = json.loads(command("plan", "--matrix", "changed.yaml", "--store", own_store.root, "--json")[1])
    lines = {stage["stage"]: stage["why"] for stage in short["stages"]}
    assert "why" not in short
    assert "an older version wrote it" in lines["train"]
    assert "failed before: loss is NaN at step 3" in lines["reference"]


def test_one_line_names_three_changes_and_where_the_others_are(why):
    stages, reasons, _ = why(train={**SPEC["train"], "learning_rate": 2e-4, "max_steps": 2, "warmup": 0.2, "clip": 2.0})
    line = next(stage["why"] for stage in stages if stage["stage"] == "train")
    assert line.endswith("1 more (--why)")
    assert len(reasons["train"]["changes"]) == 4
    assert "\n" not in line


def test_a_database_with_a_log_beside_it_is_read_as_it_is(store, command):
    """A judge's file while a run is writing to it: what stands in its log counts, and verify takes nothing from it."""
    store.root.mkdir()
    with ReplyStore(store.root / "judge.sqlite") as replies:
        replies.keep("key", {"text": "paid"})
        assert (store.root / "judge.sqlite-wal").exists()
        assert command("store", "verify")[0] == 0
    with sqlite3.connect(store.root / "judge.sqlite") as database:
        assert database.execute("SELECT COUNT(*) FROM replies").fetchone() == (1,)
    os.truncate(store.root / "judge.sqlite", 5000)
    assert command("store", "verify")[0] == 1
