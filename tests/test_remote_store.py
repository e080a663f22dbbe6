"""A store behind an address, on a real S3 server: machines share artifacts and nothing else. A machine here is a cache of its own."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from bucket_server import ENVIRONMENT, NAME, serving
from conftest import SMALL_SPEC
from judge_setup import judge, question

from spo_bench import api
from spo_bench.engine.engine import unique_in_order
from spo_bench.errors import Busy, Damaged, InputError, StageError, Unreachable
from spo_bench.files import read_json, write_json
from spo_bench.judging.sharing import get, send, sharing
from spo_bench.judging.store import FILE, ReplyStore, spent_from
from spo_bench.stages.base import Stage
from spo_bench.stages.registry import How, execute
from spo_bench.store import lease as leases
from spo_bench.store import sealed, transfer
from spo_bench.store.artifacts import RETRY
from spo_bench.store.bucket import Bucket
from spo_bench.store.claims import claim
from spo_bench.store.opening import open_store
from spo_bench.store.remote import RemoteStore
from spo_bench.store.sealed import SEAL

KEYS = [f"{number:032x}" for number in range(16)]
SPEC = {**SMALL_SPEC, "methods": ["dpo"], "spo": [False]}
Machine = Callable[[str], RemoteStore]


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with serving() as environment:
        yield environment


@pytest.fixture
def url(server) -> str:
    return f"s3://{NAME}/{uuid4().hex}"


@pytest.fixture
def machine(url, tmp_path, monkeypatch) -> Machine:
    """Give the store as a machine of a name sees it."""

    def see(name: str) -> RemoteStore:
        monkeypatch.setenv("SPO_BENCH_CACHE", str(tmp_path / name))
        return open_store(url)

    return see


def fill(store, number: int, content: bytes = b"weights", kind: str = "train") -> list[int]:
    """Make an entry with a policy and a log, unless it is there; return the numbers that were built."""
    built = []

    def build(part: Path) -> None:
        built.append(number)
        (part / "policy").mkdir()
        (part / "policy" / "model.safetensors").write_bytes(content * 100)
        (part / "policy" / "config.json").write_text("{}")
        (part / "train.jsonl").write_bytes(content)

    store.make(kind, KEYS[number], {"kind": kind, "number": number}, build)
    return built


# --- whole runs ---------------------------------------------------------------------------------------------------------


def test_a_run_has_the_numbers_of_a_local_one_and_another_machine_makes_nothing(url, machine, tmp_path, command):
    here = api.run(SPEC, tmp_path / "here", store=tmp_path / "store")
    machine("one")
    there = api.run(SPEC, tmp_path / "there", store=url)
    assert there.made == here.made > 5
    machine("two")
    again = api.run(SPEC, tmp_path / "again", store=url)
    assert (again.made, again.done) == (0, again.cells)
    files = [(run / "metrics.jsonl").read_bytes() for run in (tmp_path / "there", tmp_path / "again")]
    assert files[0] == files[1]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from chaos import differences, numbers

    assert numbers(tmp_path / "here")
    assert differences(tmp_path / "there", tmp_path / "here") == 0
    ours, theirs = (tmp_path / run / "cells.jsonl" for run in ("here", "again"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert read_json(tmp_path / "again" / "run.json")["store"] == url
    # A finished run stays as it is; the weights it did not need are not on the second machine, and come when they are wanted.
    assert api.run(SPEC, tmp_path / "again", store=url).made == 0
    cell = read_json(next((tmp_path / "again" / "cells").glob("*dpo*/provenance.json")))
    policy = machine("two").path("train", cell["keys"]["train"]) / "policy"
    assert not (policy / "model.safetensors").exists()
    assert (policy / "config.json").is_file()
    hashed = [read_json(path)["policy"] for path in sorted(tmp_path.glob("*/cells/*dpo*/provenance.json"))]
    assert len(set(hashed)) == 1
    assert hashed[0]
    assert command("store", "fetch", tmp_path / "again", "--store", url)[:2] == (0, f"{policy}\n")
    assert (policy / "model.safetensors").is_file()
    written = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and ENVIRONMENT["AWS_SECRET_ACCESS_KEY"].encode() in path.read_bytes()
    ]
    assert written == []


def test_two_processes_with_two_caches_make_each_artifact_once(url, server, tmp_path):
    """Each asks for the same six, and takes another one where the other machine is at it."""
    script = tmp_path / "maker.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from spo_bench.errors import Busy\n"
        "from spo_bench.store.opening import open_store\n"
        "url, log = sys.argv[1:]\n"
        "def build(part):\n"
        "    time.sleep(0.2)\n"
        "    (part / 'rows').write_text(log)\n"
        "left = [f'{number:032x}' for number in range(6)]\n"
        "store = open_store(url)\n"
        "while left:\n"
        "    key = left.pop(0)\n"
        "    try:\n"
        "        store.make('data', key, {}, lambda part: (open(log, 'a').write(key + chr(10)), build(part)), wait=False)\n"
        "    except Busy:\n"
        "        left.append(key)\n"
        "        time.sleep(0.05)\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, str(script), url, str(tmp_path / f"log{number}")],
            env={
                **os.environ,
                **server,
                "SPO_BENCH_CACHE": str(tmp_path / f"cache{number}"),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
        )
        for number in range(2)
    ]
    assert [process.wait(60) for process in started] == [0, 0]
    made = [line for number in range(2) if (log := tmp_path / f"log{number}").is_file() for line in log.read_text().split()]
    assert sorted(made) == [f"{number:032x}" for number in range(6)]
    assert Bucket(url).find("locks") == {}


def test_a_training_that_is_killed_goes_on_on_another_machine_with_the_same_bits(url, machine, server, tmp_path):
    spec = {**SPEC, "train": {**SPEC["train"], "batch_size": 2, "max_steps": 6}}
    cells = api.cells_of(api.load_spec(spec), tmp_path / "store", "cpu")
    (train,) = [cell.stages["train"] for cell in cells if "train" in cell.stages]
    whole, first = open_store(tmp_path / "store"), machine("one")
    for stage in unique_in_order([train]):
        execute(stage, whole)
        if stage is not train:
            execute(stage, first)
    (tmp_path / "stage.pickle").write_bytes(pickle.dumps((train, first)))
    script = (
        "import pickle, sys\n"
        "import torch\n"
        "from spo_bench.stages.registry import How, execute\n"
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "stage, store = pickle.load(open(sys.argv[1], 'rb'))\n"
        "execute(stage, store, How(every=0))\n"
    )
    import torch

    words = [sys.executable, "-c", script, str(tmp_path / "stage.pickle"), str(torch.get_num_threads())]
    process = subprocess.Popen(words, env={**os.environ, **server, "PYTHONPATH": os.pathsep.join(sys.path)})
    bucket, prefix = Bucket(url), f"checkpoints/train-{train.key}"
    while process.poll() is None and not bucket.has(f"{prefix}/2/{SEAL}") and not bucket.has(f"{prefix}/3/{SEAL}"):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed while it trained"
    assert not first.has("train", train.key)
    second = machine("two")
    seen: list[int] = []
    fetched = second.beyond("train", train.key).fetch
    fetched(tmp_path / "looked", 0)
    seen = [int(path.name) for path in (tmp_path / "looked").iterdir()]
    assert seen[0] >= 2, "there is something to go on from"
    bucket.remove(f"locks/train-{train.key}")  # as if the owner had been dead for long
    execute(train, second)
    ours, theirs = (train.path(store) / "policy" / "model.safetensors" for store in (second, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    logs = [
        [{**json.loads(line), "seconds": 0, "peak_memory": 0} for line in (train.path(s) / "train.jsonl").open()]
        for s in (second, whole)
    ]
    assert logs[0] == logs[1]
    assert bucket.find("checkpoints") == {}


# --- entries ------------------------------------------------------------------------------------------------------------


def test_an_entry_is_made_once_and_comes_whole_to_another_machine(machine):
    one, two = machine("one"), machine("two")
    assert fill(one, 1) == [1]
    assert two.has("train", KEYS[1])
    assert fill(two, 1) == []
    assert not two.here("train", KEYS[1])
    two.check("train", KEYS[1])
    assert sealed.fault(two.path("train", KEYS[1])) is None
    assert two.record("train", KEYS[1]) == one.record("train", KEYS[1])


def test_an_upload_that_breaks_off_is_nothing_and_is_taken_up_without_building_again(machine, monkeypatch, url):
    one, two, put = machine("one"), machine("two"), Bucket.write

    def broken(self, name, content, new=False):
        if name.endswith(SEAL):
            raise Unreachable("the line is cut", "it holds", "mend it")
        return put(self, name, content, new)

    monkeypatch.setattr(Bucket, "write", broken)
    with pytest.raises(Unreachable):
        fill(one, 1)
    assert len(Bucket(url).find("train")) == 3, "three files without a seal"
    assert not two.has("train", KEYS[1])
    assert not one.has("train", KEYS[1])
    with pytest.raises(Damaged, match="it is gone"):
        two.check("train", KEYS[1])
    monkeypatch.setattr(Bucket, "write", put)
    assert fill(one, 1) == []
    two.check("train", KEYS[1])


def test_a_download_that_breaks_off_is_nothing(machine, monkeypatch):
    one, two, get = machine("one"), machine("two"), Bucket.download
    fill(one, 1)

    def broken(self, files):
        get(self, list(files)[:1])
        raise Unreachable("the line is cut", "it holds", "mend it")

    monkeypatch.setattr(Bucket, "download", broken)
    with pytest.raises(Unreachable):
        two.check("train", KEYS[1])
    assert not two.here("train", KEYS[1])
    assert not list(two.root.glob("*/*.part"))
    monkeypatch.setattr(Bucket, "download", get)
    two.check("train", KEYS[1])


def test_two_machines_that_made_the_same_otherwise_do_not_mix_their_files(machine, url):
    """The first seal stays; what the other uploaded is removed, and its copy becomes that of the first."""
    one, two = machine("one"), machine("two")
    fill(one, 1, b"ours")
    folder = two.path("train", KEYS[1])
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "model.safetensors").write_bytes(b"theirs")
    sealed.seal(folder, {"kind": "train", "key": KEYS[1], "identity": {}})
    assert not transfer.upload(two.bucket, folder, f"train/{KEYS[1]}", first=True)
    assert len({name.split("/")[2] for name in Bucket(url).find("train")}) == 2, "a seal and one place"
    two.check("train", KEYS[1])
    assert (folder / "train.jsonl").read_bytes() == b"ours"


def damage(url: str, store: RemoteStore, number: int, name: str, content: bytes | None) -> None:
    """Replace or remove an object of an entry."""
    bucket = Bucket(url)
    (found,) = [one for one in bucket.find(f"train/{KEYS[number]}") if one.endswith(name)]
    bucket.remove(found) if content is None else bucket.write(found, content)


@pytest.mark.parametrize(("content", "why"), [(b"weighty", "another content"), (b"we", "has 2 bytes"), (None, "is missing")])
def test_a_damaged_object_is_found_named_and_made_again(machine, url, content, why):
    one, two = machine("one"), machine("two")
    fill(one, 1)
    damage(url, one, 1, "train.jsonl", content)
    with pytest.raises(Damaged, match=f"train.jsonl .*{why}|train.jsonl {why}") as found:
        two.check("train", KEYS[1])
    assert url in str(found.value)
    assert not two.here("train", KEYS[1])
    two.discard("train", KEYS[1])
    assert not two.has("train", KEYS[1])
    assert fill(two, 1) == [1]
    two.check("train", KEYS[1])


def test_a_damaged_copy_is_fetched_again(machine):
    one, two = machine("one"), machine("two")
    fill(one, 1)
    two.check("train", KEYS[1])
    for name in ("train.jsonl", "policy/model.safetensors"):
        (two.path("train", KEYS[1]) / name).write_bytes(b"altered")
        two.check("train", KEYS[1])
        assert sealed.fault(two.path("train", KEYS[1])) is None


def test_a_copy_of_what_was_made_anew_meanwhile_is_not_used(machine):
    one, two = machine("one"), machine("two")
    fill(one, 1, b"before")
    two.check("train", KEYS[1])
    one.remove("train", KEYS[1])
    assert fill(one, 1, b"after") == [1]
    two.check("train", KEYS[1])
    assert (two.path("train", KEYS[1]) / "train.jsonl").read_bytes() == b"after"


def test_what_is_to_be_retried_is_known_and_made_again(machine):
    one, two = machine("one"), machine("two")
    one.make("judge", KEYS[1], {}, lambda part: (part / RETRY).write_text("3\n"))
    assert two.to_retry("judge", KEYS[1]) == two.listing().to_retry("judge", KEYS[1]) == 3
    two.remove("judge", KEYS[1])
    assert one.listing().to_retry("judge", KEYS[1]) == 0
    built = []
    machine("one").make("judge", KEYS[1], {}, lambda part: built.append((part / "rows").write_text("x")))
    assert built, "the old copy of the first machine is not given back"


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "SEAL"])
def test_a_seal_cannot_name_a_file_outside_its_folder(machine, url, name, tmp_path):
    seal = sealed.signed({"kind": "train", "key": KEYS[1], "identity": {}, "files": {name: {"size": 1, "sha256": "0"}}})
    Bucket(url).write(f"train/{KEYS[1]}/{SEAL}", (json.dumps(seal, indent=1, ensure_ascii=False) + "\n").encode())
    with pytest.raises(Damaged, match="it names"):
        machine("one").check("train", KEYS[1])
    assert not list(tmp_path.rglob("outside"))


def test_failures_are_remembered_for_all_machines(machine):
    one, two = machine("one"), machine("two")
    one.fail("train", KEYS[1], "the loss is not a number")
    assert two.failure("train", KEYS[1]) == two.listing().failure("train", KEYS[1]) == "the loss is not a number"
    two.forgive("train", KEYS[1])
    assert one.failure("train", KEYS[1]) is None


def test_planning_lists_each_kind_once(machine, monkeypatch):
    fill(machine("one"), 1)
    asked, find = [], Bucket.find
    monkeypatch.setattr(Bucket, "find", lambda self, under="": asked.append(under) or find(self, under))
    monkeypatch.setattr(Bucket, "has", None)
    listing = machine("two").listing()
    for key in KEYS:
        done = Stage("train", 1, {"key": key}).done(listing) or listing.has("train", key)
        assert done == (key == KEYS[1])
        assert listing.to_retry("train", key) == 0
        assert listing.failure("train", key) is None
    assert listing.newest("train") == [KEYS[1]]
    assert listing.identity("train", KEYS[1]) == {"kind": "train", "number": 1}
    assert listing.fault("train", KEYS[1], contents=False) is None
    assert sorted(asked) == ["failures", "train"]


def test_a_store_is_small_to_send_and_has_the_cache_of_where_it_arrives(machine, tmp_path, monkeypatch):
    sent = pickle.dumps(machine("one"))
    assert len(sent) < 200
    assert str(tmp_path).encode() not in sent
    monkeypatch.setenv("SPO_BENCH_CACHE", str(tmp_path / "elsewhere"))
    assert pickle.loads(sent).root.parent == tmp_path / "elsewhere"


# --- leases -------------------------------------------------------------------------------------------------------------


def test_another_machine_waits_for_a_lease_and_takes_it_when_its_owner_is_dead(machine, monkeypatch, caplog):
    one, two = machine("one"), machine("two")
    abandoned = {"owner": "elsewhere_1_0", "home": "elsewhere", "token": "t", "beat": 4}
    one.bucket.write("locks/train-x", json.dumps(abandoned).encode())
    monkeypatch.setattr(leases, "SETTLE", 0.0)
    seen = two.root / "leases" / "train-x"

    def asked_after(seconds: float) -> None:
        """Ask for the lease, as if it had last been seen so long ago."""
        long_ago = time.time() - seconds
        os.utime(seen, (long_ago, long_ago))
        with pytest.raises(Busy, match="elsewhere"), two.lock("train-x", wait=False):
            pass

    with pytest.raises(Busy, match="elsewhere"), two.lock("train-x", wait=False):
        pass
    asked_after(leases.STALE - 60)
    one.bucket.write("locks/train-x", json.dumps({**abandoned, "beat": 5}).encode())
    asked_after(leases.STALE + 60)  # it was renewed
    long_ago = time.time() - leases.STALE - 60
    os.utime(seen, (long_ago, long_ago))
    with two.lock("train-x", wait=False), pytest.raises(Busy), one.lock("train-x", wait=False):
        pass
    assert "elsewhere_1_0 is dead" in caplog.text
    with one.lock("train-x", wait=False):
        assert one.bucket.has("locks/train-x")
    assert not one.bucket.has("locks/train-x")


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_at_once(machine):
    """Who holds the lock of the machine knows that no other process of it holds the lease."""
    one = machine("one")
    one.bucket.write("locks/x", json.dumps({"owner": "o_1_0", "home": one.machine, "token": "t", "beat": 0}).encode())
    with one.lock("x", wait=False):
        pass


def test_a_lease_is_renewed_as_long_as_it_is_held(machine, monkeypatch):
    one = machine("one")
    monkeypatch.setattr(leases, "PERIOD", 0.05)
    with one.lock("x"):
        while json.loads(one.bucket.read("locks/x"))["beat"] < 2:
            time.sleep(0.01)
        other = {"owner": "o_1_0", "home": "h", "token": "t", "beat": 0}
        renewing = next(thread for thread in threading.enumerate() if thread.name == "renew locks/x")
        while renewing.is_alive():  # it may be about to renew once more
            one.bucket.write("locks/x", json.dumps(other).encode())
            time.sleep(0.01)
    assert json.loads(one.bucket.read("locks/x"))["token"] == "t", "one that was taken over is not taken back"


# --- judges ------------------------------------------------------------------------------------------------------------


def test_replies_that_were_paid_on_one_machine_are_not_paid_on_another(machine, endpoint):
    """Five questions in both orders are ten calls; the limit of twelve is one for both machines."""
    with sharing(one := machine("one")):
        verdicts = judge(endpoint, cache=one.root / FILE, budget="p", max_calls=12).compare([question(f"{n}") for n in range(5)])
    assert len(endpoint.bodies) == 10
    two = machine("two")
    again = judge(endpoint, cache=two.root / FILE, budget="p", max_calls=12)
    with sharing(two):
        assert [one.outcome for one in again.compare([question(f"{n}") for n in range(5)])] == [one.outcome for one in verdicts]
        assert len(endpoint.bodies) == 10
        with pytest.raises(StageError, match="max_calls"):
            again.compare([question(f"{n}") for n in range(5, 8)])
    assert len(endpoint.bodies) <= 12
    with sharing(machine("one")):
        assert spent_from(one.root / FILE, "p").calls == len(endpoint.bodies)


def test_replies_are_sent_once_and_again_where_they_changed(machine):
    store = machine("one")
    with ReplyStore((store.root.mkdir(parents=True), store.root / FILE)[1]) as replies:
        replies.keep_all({f"{number}": {"text": "a"} for number in range(3)})
    for _ in range(2):
        send(store)
        assert len(store.notes("replies")) == 1
    with ReplyStore(store.root / FILE) as replies:
        replies.keep("1", {"text": "b"})
    send(store)
    assert len(store.notes("replies")) == 2
    get(two := machine("two"))
    with ReplyStore(two.root / FILE) as replies:
        assert replies.replies(["0", "1", "2"]).keys() == {"0", "1", "2"}
        assert replies.unsent(9) == {}


# --- commands -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def there(machine, url, command, tmp_path, monkeypatch) -> tuple[RemoteStore, Callable]:
    """Two entries, of which a run claims the first; a checkpoint, a failure, half an upload."""
    store = machine("one")
    fill(store, 1)
    fill(store, 2)
    write_json(tmp_path / "run" / "run.json", {"purse": "p"})
    claim(store, tmp_path / "run", "p", [("train", KEYS[1])])
    store.fail("train", KEYS[3], "the loss is not a number")
    folder = tmp_path / "kept" / "1"
    folder.mkdir(parents=True)
    (folder / "00000.safetensors").write_bytes(b"state")
    sealed.seal(folder, {"made_by": {}, "values": {}})
    store.beyond("train", KEYS[4]).keep(folder)
    store.bucket.write(f"train/{KEYS[5]}/0123456789abcdef/rows", b"half")
    monkeypatch.setenv("SPO_BENCH_STORE", url)
    return store, command


def test_ls(there, url):
    store, command = there
    code, out, _ = command("store", "ls", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["store"] == url
    assert (found["kinds"]["train"]["entries"], found["kinds"]["train"]["claimed"]) == (2, 1)
    assert [len(found[name]) for name in ("checkpoints", "failures", "runs", "unfinished")] == [1, 1, 1, 1]
    assert found["damaged"] == {}
    damage(url, store, 2, "train.jsonl", b"cut")
    code, out, _ = command("store", "ls")
    assert "train.jsonl has 3 bytes, and 7 when it was made" in out
    assert url in out


def test_verify(there, url):
    store, command = there
    assert command("store", "verify")[0] == 0
    damage(url, store, 2, "model.safetensors", b"weightx" * 100)
    (kept,) = [name for name in store.bucket.find("checkpoints") if name.endswith("safetensors")]
    store.bucket.write(kept, b"stale")
    code, out, _ = command("store", "verify", "--remove")
    assert code == 1
    assert f"damaged: train/{KEYS[2]}: policy/model.safetensors has another content than when it was made; removed" in out
    assert f"damaged: checkpoints/train-{KEYS[4]}/1: 00000.safetensors" in out
    assert store.bucket.find("checkpoints") == store.bucket.find(f"train/{KEYS[2]}") == {}
    assert command("store", "verify")[0] == 0


def test_gc(there, monkeypatch):
    store, command = there
    before = store.bucket.find()
    code, out, _ = command("store", "gc", "--dry-run", "--json")
    assert code == 0
    assert store.bucket.find() == before
    found = {(one["what"], one["path"]) for one in json.loads(out)["removed"]}
    expected = {
        ("entry", f"train/{KEYS[2]}"),
        ("failure", f"failures/train-{KEYS[3]}"),
        ("checkpoint", f"checkpoints/train-{KEYS[4]}"),
    }
    assert found == expected, "half an upload may be on its way"
    assert command("store", "gc")[0] == 0
    assert store.bucket.find("train").keys() == {name for name in before if KEYS[2] not in name and name.startswith("train/")}
    assert not store.here("train", KEYS[2])
    monkeypatch.setattr("spo_bench.store.remote_inventory.LEFT", -1)
    assert command("store", "gc")[0] == 0
    assert {name.split("/")[1] for name in store.bucket.find("train")} == {KEYS[1]}
    store.check("train", KEYS[1])


# --- what cannot be used ------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch, server) -> Iterator[pytest.MonkeyPatch]:
    """An environment of its own: a client keeps the one it was made in."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


def refused(command, url: str, tmp_path: Path, *words: str) -> str:
    """Run and plan with a store; return what was said, which is the same and leaves nothing."""
    write_json(tmp_path / "spec.yaml", SPEC)
    for verb in ("plan", "run"):
        code, out, error = command(verb, "--matrix", tmp_path / "spec.yaml", "--store", url, "--out", tmp_path / "out", *words)
        assert code == 2, (out, error)
        assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
    assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in out + error
    assert "rule:" in error
    assert "remedy:" in error
    return error


def test_a_bucket_that_is_not_there(command, server, tmp_path):
    assert "bucket does not exist" in refused(command, "s3://nobody-has-this/x", tmp_path)


def test_no_server(command, alone, tmp_path):
    alone.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "Could not connect" in refused(command, f"s3://{NAME}/x", tmp_path)


def test_a_key_that_is_not_known(command, alone, tmp_path):
    from moto.core import set_initial_no_auth_action_count

    refusing = set_initial_no_auth_action_count(0)
    assert "PermissionError" in refusing(refused)(command, f"s3://{NAME}/x", tmp_path)


def test_a_package_that_is_missing(command, alone, tmp_path):
    alone.setitem(sys.modules, "s3fs", None)
    alone.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    assert "pip install 'spo-bench[s3]'" in refused(command, f"s3://{NAME}/x", tmp_path)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:a-very-secret-key@bucket/x", "no account in it"),
        ("s3://", "names a bucket"),
        ("carrier-pigeon://loft/x", "Protocol not known"),
    ],
)
def test_addresses_that_will_not_do(command, tmp_path, url, said):
    assert said in refused(command, url, tmp_path)


def test_a_server_that_goes_away_fails_a_stage_for_now_and_not_for_good(machine, alone):
    """What was built is kept here, nothing is remembered against it, and the same command takes it up."""
    from spo_bench.engine.attempt import attempt

    stage = Stage("train", 1, {"a": 1})
    store = machine("one")
    alone.setattr(Bucket, "_files", property(lambda self: (_ for _ in ()).throw(ConnectionError("reset by peer"))))
    ended = attempt(stage, store, 1, How())
    assert ended.how == "passing"
    assert "reset by peer" in ended.reason
    with pytest.raises(InputError, match="remedy"):
        store.reach()
