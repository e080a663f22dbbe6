"""Before anything is run: what would fail later is told in one list, nothing is left behind, and the judge is asked once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL_SPEC, tiny_model
from endpoint import Answer, Endpoint, refusal, said
from typer.testing import CliRunner

import spo_bench
from spo_bench.api import cells_of
from spo_bench.cli.app import app
from spo_bench.engine.engine import unique_in_order
from spo_bench.engine.free import INFINITE, Need, all_memory, free_memory
from spo_bench.engine.memory import GIB, PROCESS, estimate
from spo_bench.engine.preflight import Ahead, Found, check, memory
from spo_bench.engine.space import REPORT, space
from spo_bench.errors import InputError
from spo_bench.judging.store import FILE, spent_from
from spo_bench.matrix.load import load_spec
from spo_bench.models.embedded import build_embedded
from spo_bench.models.source import check_architecture, check_weights
from spo_bench.problems import ManyProblems, Problems
from spo_bench.stages.base import Stage
from spo_bench.store.artifacts import Store
from spo_bench.store.place import check_works

SPEC: dict[str, Any] = {**SMALL_SPEC, "methods": ["dpo"], "spo": [False]}


def judged(url: str, **judge: Any) -> dict[str, Any]:
    """A spec whose judge is behind an endpoint."""
    asked = {"backend": "openai", "model": "judge-2030-01-01", "base_url": url, "api_key_env": "JUDGE_KEY", "verdict": "json"}
    return {**SPEC, "judge": {**asked, **judge}}


def before(spec: dict[str, Any], folder: Path, device: str = "cpu", jobs: int = 1, purse: str = "purse") -> Ahead:
    """A run of a spec in a folder of which nothing is there."""
    loaded, store = load_spec(spec), Store(folder / "store")
    cells = cells_of(loaded, store.root, "cpu", purse=purse)
    every = unique_in_order([stage for cell in cells for stage in cell.stages.values()])
    missing = [stage for stage in every if not stage.done(store)]
    return Ahead(loaded, cells, missing, store, folder / "run", (all_memory(device), free_memory(device)), jobs, purse)


def refused(spec: dict[str, Any], folder: Path) -> InputError:
    """Return what a run of a spec is refused for; nothing may be left behind."""
    there = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as caught:
        spo_bench.run(spec, folder / "run", store=folder / "store", warn=lambda text: None)
    assert sorted(folder.rglob("*")) == there
    return caught.value


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a tokenizer of its own, on disk."""
    folder = tmp_path_factory.mktemp("model") / "small"
    build_embedded(folder, 0)
    tiny_model().save_pretrained(folder)
    return folder


def test_the_command_tells_everything_at_once_and_leaves_nothing(tmp_path: Path, model: Path, endpoint: Endpoint) -> None:
    """One of each: a GPU that is not there, data, a model, a hub id that the hub does not have, weights that are cut, a file in the
    way of the run, and a judge that does not know the key. The judge is asked once; what is right is not told.
    """
    endpoint.script = lambda body, number: refusal(401, "Incorrect API key provided")
    cut = tmp_path / "cut"
    shutil.copytree(model, cut)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:-10])
    (tmp_path / "taken").write_text("a file")
    spec = judged(endpoint.url) | {
        "models": ["embedded", str(model), "./nowhere"],
        "tasks": [*SPEC["tasks"], {"name": "dialogue", "data": "nowhere.jsonl"}],
        "rewards": [str(cut), "someone/reward-model"],
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    there = sorted(tmp_path.rglob("*"))
    hub = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint.url.removesuffix("/v1"), "HF_HOME": str(tmp_path / "hub")}
    words = ["run", "--matrix", "spec.yaml", "--out", "taken/run", "--store", "store", "--device", "cuda:99"]
    done = subprocess.run(
        [sys.executable, "-c", "from spo_bench.cli.main import main; main()", *words],
        cwd=tmp_path,
        env={**os.environ, **hub, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "7 problems before anything was run:" in done.stderr
    expected = [
        "device 'cuda:99'",
        "data file 'nowhere.jsonl' is not there",
        "model directory './nowhere' is not there",
        f"the weights in '{cut}' are not whole: model.safetensors has {len(weights) - 10:,} bytes of {len(weights):,}",
        "model 'someone/reward-model' is neither a local directory nor could it be fetched from the hub",
        f"'{tmp_path / 'taken'}' is a file",
        f"the judge endpoint {endpoint.url} refused the key in JUDGE_KEY (HTTP 401)",
    ]
    for number, words_ in enumerate(expected, start=1):
        assert any(line.startswith(f"  {number}. ") and words_ in line for line in done.stderr.splitlines()), (
            words_,
            done.stderr,
        )
    assert done.stderr.count("     rule: ") == done.stderr.count("     remedy: ") == len(expected)
    assert sorted(tmp_path.rglob("*")) == there
    assert len(endpoint.bodies) == 1


def test_one_problem_alone_is_told_as_it_is(tmp_path: Path) -> None:
    error = refused({**SPEC, "models": ["./nowhere"]}, tmp_path)
    assert str(error).startswith("model directory './nowhere' is not there\n  rule: a path must exist\n  remedy: check the path")


def test_a_list_of_problems_holds_each_once_and_travels_between_processes() -> None:
    problems = Problems()
    for given in ("a", "b", "a"):
        with problems.noted():
            raise InputError(given, "rule", "one\ntwo")
    problems.add(ManyProblems([InputError("b", "rule", "one\ntwo"), InputError("c", "rule", "remedy")]))
    found = pickle.loads(pickle.dumps(problems.together()))
    assert [one.given for one in found.problems] == ["a", "b", "c"]
    assert str(found).splitlines()[:5] == [
        "3 problems before anything was run:",
        "  1. a",
        "     rule: rule",
        "     remedy: one",
        "     two",
    ]
    with pytest.raises(ZeroDivisionError), problems.noted():
        raise ZeroDivisionError


# The judge.

HTML = Answer(body=b"<html>Welcome</html>", headers={"content-type": "text/html"})
REFUSALS: dict[str, tuple[Answer, dict[str, Any], list[str]]] = {
    "wrong key": (
        refusal(401, "no"),
        {},
        ["refused the key in JUDGE_KEY (HTTP 401)", "put a key of this endpoint into JUDGE_KEY"],
    ),
    "unknown model": (
        refusal(404, "The model does not exist"),
        {},
        ["does not serve 'judge-2030-01-01'", "check the judge's name"],
    ),
    "unknown model, told otherwise": (
        refusal(400, "judge is not a valid model ID"),
        {},
        ["does not serve", "check the judge's name"],
    ),
    "no credit": (
        refusal(429, "You exceeded your current quota", code="insufficient_quota"),
        {},
        ["would stop: the quota behind the key in JUDGE_KEY is used up", "top it up, then repeat the command"],
    ),
    "no completion": (
        HTML,
        {},
        ["gave no usable answer: the endpoint's answer is not a chat completion", "it often ends in /v1"],
    ),
    "a temperature it does not take": (
        refusal(400, "only the default (1) is supported", param="temperature"),
        {"temperature": 0.5},
        ["refuses temperature 0.5", "leave temperature out"],
    ),
    "nothing may be spent": (
        Answer(),
        {"max_cost": 0.0, "price_input": 1.0, "price_output": 1.0},
        ["would stop: $0.0000 of max_cost $0 is spent", "raise max_cost, then repeat the command"],
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_judge_that_would_refuse_is_told_before_anything_is_run(name: str, tmp_path: Path, endpoint: Endpoint) -> None:
    answer, settings, words = REFUSALS[name]
    endpoint.script = lambda body, number: answer
    error = refused(judged(endpoint.url, **settings), tmp_path)
    for said_ in words:
        assert said_ in str(error)
    assert len(endpoint.bodies) == (name != "nothing may be spent")


def test_a_judge_that_is_not_there_is_told_with_all_else(tmp_path: Path) -> None:
    """Nobody listens on port 9; a remote judge has no key."""
    error = refused(judged("http://127.0.0.1:9/v1") | {"tasks": [{**SPEC["tasks"][0], "limit": {"train": 10**9}}]}, tmp_path)
    assert isinstance(error, ManyProblems)
    assert [one.given.split(":")[0] for one in error.problems] == [
        f"--store '{tmp_path / 'store'}' and --out '{tmp_path / 'run'}'",
        "no answer from the judge endpoint http",
    ]
    error = refused(judged("https://judge.invalid/v1", api_key_env="NO_SUCH_KEY"), tmp_path)
    assert "the environment variable NO_SUCH_KEY is not set" in str(error)


@pytest.mark.parametrize(
    ("answer", "warned"),
    [
        (said({"logprobs": True}, "A"), ""),
        (refusal(400, "'max_tokens' is not supported with this model", param="max_tokens"), ""),
        (refusal(400, "Could not finish the message because max_tokens or model output limit was reached"), ""),
        (refusal(503, "overloaded"), "did not answer a first question: HTTP 503: overloaded"),
    ],
)
def test_a_judge_that_is_there_is_asked_once_and_paid(answer: Answer, warned: str, tmp_path: Path, endpoint: Endpoint) -> None:
    """One request of one token, in the run's purse: 100 prompt tokens and 10 of completion where it is answered."""
    endpoint.script = lambda body, number: answer
    ahead, warnings = before(judged(endpoint.url, price_input=1.0, price_output=4.0), tmp_path), list[str]()
    for calls in (1, 2):
        check(ahead, Problems(), warnings.append)
        spent = spent_from(ahead.store.root / FILE, "purse")
        assert (spent.calls, len(endpoint.bodies)) == (calls, calls)
        assert spent.dollars == pytest.approx(calls * (140e-6 if answer.status == 200 else 0))
    assert {body["max_tokens"] for body in endpoint.bodies} == {1}
    assert [warned in one for one in warnings] == ([True, True] if warned else [])
    limited = before(judged(endpoint.url, max_calls=2), tmp_path)
    with pytest.raises(InputError, match="would stop: max_calls 2 requests were sent"):
        check(limited, Problems(), warnings.append)
    assert len(endpoint.bodies) == 2


def test_a_plan_says_what_a_run_would_be_refused_for_and_asks_nobody(tmp_path: Path, endpoint: Endpoint) -> None:
    (tmp_path / "taken").write_text("a file")
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(judged(endpoint.url)))
    there = sorted(tmp_path.rglob("*"))
    options = ["--matrix", str(spec), "--out", str(tmp_path / "taken"), "--store", str(tmp_path / "store")]
    told = CliRunner().invoke(app, ["plan", *options, "--json"])
    (problem,) = json.loads(told.stdout)["refused"]
    assert problem.keys() == {"given", "rule", "remedy"}
    assert problem["given"].endswith("is a file")
    shown = CliRunner().invoke(app, ["run", "--dry-run", *options], env={"COLUMNS": "400"})
    assert shown.exit_code == 0
    assert "warning: a run would be refused: --out" in shown.stdout
    assert (endpoint.bodies, sorted(tmp_path.rglob("*"))) == ([], there)


# Disk.


def test_space_is_counted_by_weights_and_by_trainings_at_a_time(tmp_path: Path, model: Path) -> None:
    """Two methods of P parameters each: 4 P bytes a policy, and twice 3 x 4 P of checkpoints for each of two at a time."""
    parameters = sum(weight.numel() for weight in tiny_model().parameters())
    spec = {**SPEC, "models": [str(model)], "methods": ["dpo", "ipo"]}
    tokenizer = sum(
        (model / name).stat().st_size for name in ("tokenizer.json", "chat_template.jinja") if (model / name).is_file()
    )
    ahead = before(spec, tmp_path)
    found = {jobs: space(ahead.cells, ahead.missing, ahead.store, jobs) for jobs in (1, 2, 3)}
    assert found[1].weights == 2 * (4 * parameters + tokenizer)
    assert [found[jobs].checkpoints for jobs in (1, 2, 3)] == [24 * parameters * jobs for jobs in (1, 2, 2)]
    lora = before({**spec, "train": {**spec["train"], "lora": {"rank": 2}}}, tmp_path)
    adapters = space(lora.cells, lora.missing, lora.store, 1)
    assert adapters.checkpoints < found[1].checkpoints / 4
    assert adapters.rows == found[1].rows
    assert space(ahead.cells, [], ahead.store, 1) == (0, 0, 0, 0)


def test_a_finished_run_took_less_than_was_counted_and_asks_nothing(tmp_path: Path) -> None:
    """Also where its directory cannot be written to any more, and its weights are more than the disk would hold again."""
    counted = space((ahead := before(SPEC, tmp_path)).cells, ahead.missing, ahead.store, 1)
    done = spo_bench.run(SPEC, ahead.out, store=ahead.store.root)
    assert not done.failed

    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())

    assert size(ahead.store.root) < counted.store
    assert size(ahead.out) < counted.out
    assert counted.out > REPORT
    again = spo_bench.run(SPEC, ahead.out, store=ahead.store.root, warn=pytest.fail)
    assert again.made == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_too_small_is_told_before_it_is_full(small_disk: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--store '.*/disk/store': about \d+ MiB will be written .*, and 1 MiB are free\n"):
        spo_bench.run(SPEC, tmp_path / "run", store=small_disk / "store")
    assert [*small_disk.iterdir()] == []
    assert not (tmp_path / "run").exists()


def test_a_disk_that_cannot_be_written_to_is_found_by_writing(small_disk: Path) -> None:
    """Root passes every check of rights: only trying tells."""
    assert check_works("out", small_disk / "run") == []
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match=r"--out '.*/disk/run'.*"):
        check_works("out", small_disk / "run")
    assert [*small_disk.iterdir()] == []


# Memory.


def test_what_can_never_run_here_is_refused_and_what_is_tight_is_told(tmp_path: Path, model: Path) -> None:
    ahead = before({**SPEC, "models": [str(model)], "methods": ["dpo", "ipo"]}, tmp_path)
    for stage in ahead.missing:
        least, peak = estimate(stage, ahead.store, least=True), estimate(stage, ahead.store)
        assert least.host <= peak.host, stage.kind

    def told(whole: Need, free: Need) -> Found:
        memory(ahead.missing, ahead.store, whole, free, found := Found())
        return found

    fine = told(Need(64 * GIB), Need(64 * GIB))
    assert (fine.problems.found, fine.warnings) == ([], [])
    tight = told(Need(64 * GIB), Need(PROCESS))
    assert tight.problems.found == []
    (of_model,) = (one for one in tight.warnings if f"model '{model}': memory for " in one)
    assert "train " in of_model
    assert of_model.endswith("512 MiB of this machine are free: memory may run out")
    never = told(Need(PROCESS + 1), Need(PROCESS + 1))
    (problem,) = (one for one in never.problems.found if str(model) in one.given)
    assert "(2 stages)" in problem.given
    assert problem.rule == "a stage alone fits into the 512 MiB that this machine has"
    assert problem.remedy.startswith("train adapters (train.lora), take a smaller model")
    assert all_memory("cpu").host > PROCESS


def test_a_device_that_others_hold_is_refused(tmp_path: Path, model: Path) -> None:
    """A device with 80 GiB, of which 0.1 are free: a process alone takes 0.5."""
    spec = {**SPEC, "models": [str(model)]}
    stages: list[Stage] = []
    loaded = load_spec(spec)
    from spo_bench.matrix.cells import expand
    from spo_bench.matrix.evaluation import Place
    from spo_bench.store.hashes import HashCache

    for cell in expand(loaded, Place("cuda", HashCache(tmp_path / "store"))):
        stages += cell.stages.values()
    found = Found()
    memory(stages, Store(tmp_path / "store"), Need(64 * GIB, 80 * GIB), Need(64 * GIB, 0.1 * GIB), found)
    assert {one.rule for one in found.problems.found} == {
        "a stage alone fits into the 80.0 GiB that the device has, of which 102 MiB are free"
    }
    assert all("end what else runs on it" in one.remedy for one in found.problems.found)
    found = Found()
    memory(stages, Store(tmp_path / "store"), Need(64 * GIB, INFINITE), Need(64 * GIB, INFINITE), found)
    assert (found.problems.found, found.warnings) == ([], [])


# Models and metrics.


def test_weights_that_are_not_whole_are_found_without_reading_them(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    check_weights(folder)
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / shards["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(InputError, match=r"not whole: model-00002-of-00002\.safetensors is missing"):
        check_weights(folder)
    (folder / shards["b"]).write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"the header of model-00002-of-00002\.safetensors cannot be read"):
        check_weights(folder)
    (folder / "config.json").write_text("{")
    assert "config.json' cannot be read" in str(refused({**SPEC, "rewards": [str(folder)]}, tmp_path))


def test_an_architecture_that_nobody_knows_is_told_before_the_first_training(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "reward"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "no_such_thing", "id2label": {"0": "reward"}}
    (folder / "config.json").write_text(json.dumps(config))
    error = refused({**SPEC, "rewards": [str(folder)]}, tmp_path)
    assert f"model '{folder}' is of the architecture 'no_such_thing', which transformers" in str(error)
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "code.Model"}}))
    check_architecture(folder, trusted=True)
    with pytest.raises(InputError, match="it comes with code of its own"):
        check_architecture(folder, trusted=False)
    check_architecture(model, trusted=False)


def test_a_metric_that_cannot_be_loaded_is_told_before_the_first_training(tmp_path: Path) -> None:
    script = tmp_path / "mine" / "mine.py"
    script.parent.mkdir()
    script.write_text("import evaluate\nimport no_such_package_at_all\nclass Mine(evaluate.Metric): ...\n")
    task = {**SPEC["tasks"][0], "metrics": [f"evaluate:{script}"]}
    error = refused({**SPEC, "tasks": [task]}, tmp_path)
    assert f"metric 'evaluate:{script}' cannot be loaded" in str(error)
    assert "no_such_package_at_all" in str(error)
