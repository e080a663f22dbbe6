"""A whole matrix on the embedded model, small: what it leaves, what it shares, what a twin may differ in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import spo_bench
from spo_bench.api import cells_of
from spo_bench.errors import InputError
from spo_bench.files import read_json, read_jsonl
from spo_bench.matrix.load import load_spec
from spo_bench.matrix.plan import differences, earlier_keys, stage_states
from spo_bench.store.artifacts import Store

SMALL = {
    "name": "tiny",
    "models": ["embedded"],
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 48, "eval": 12, "heldout": 24, "sft": 64}}],
    "methods": ["dpo", {"name": "kto", "train": {"learning_rate": 1e-4}}],
    "spo": [False, True, {"control": "shuffled_degrees"}],
    "seeds": [0],
    "sft": {"steps": 6, "batch_size": 16, "learning_rate": 1e-3},
    "train": {"batch_size": 8, "max_steps": 3, "learning_rate": 1e-4, "max_length": 128},
    "generate": {"max_new_tokens": 12, "batch_size": 12},
    "rewards": ["trained"],
    "reward_training": {"batch_size": 8, "max_steps": 2, "learning_rate": 1e-4},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and its store."""
    folder = tmp_path_factory.mktemp("matrix")
    done = spo_bench.run(SMALL, folder / "run", store=folder / "store")
    return done, folder / "store"


def cells(run: Path) -> dict[tuple[str, str], dict]:
    return {(c["method"], c["spo"]["label"] if c["spo"] else ""): c for c in read_jsonl(run / "cells.jsonl")}


def test_every_cell_is_done_with_every_file(finished):
    run = finished[0].out
    found = cells(run)
    assert len(found) == 7
    assert not finished[0].failed
    for (method, spo), cell in found.items():
        folder = run / "cells" / cell["id"]
        names = {"spec.json", "samples.jsonl", "judgments.jsonl", "scores.json", "provenance.json", "DONE"}
        assert names <= {p.name for p in folder.iterdir()}
        assert cell["status"] == "done"
        data = {row["id"]: row for row in read_jsonl(finished[1] / "data" / cell["keys"]["data"] / "eval.jsonl")}
        for sample in read_jsonl(folder / "samples.jsonl"):
            assert [sample[side] for side in ("chosen", "rejected")] == [
                data[sample["id"]][side] for side in ("chosen", "rejected")
            ]
        metrics = read_json(folder / "scores.json")["metrics"]
        expected = {"true_reward", "length", "distinct_2", "reward/trained", "win_rate_chosen"}
        expected |= (
            {"win_rate_sft", "kl", "implicit_accuracy", "chosen_logratio", "rejected_logratio"} if method != "sft" else set()
        )
        expected |= {"head_to_head", "degree_accuracy"} if spo else set()
        assert expected <= set(metrics)
        assert all(len(m["ids"]) == len(m["values"]) for m in metrics.values())
        rows = list(read_jsonl(folder / "train.jsonl")) if method != "sft" else []
        assert len(rows) == (3 if method != "sft" else 0)
        assert all(("degree_loss" in row) == bool(spo) for row in rows)
    assert (run / "report.html").is_file()
    for suffix in ("md", "tex", "csv", "html", "json"):
        assert (run / "tables" / f"main.{suffix}").stat().st_size


def test_policies_open_with_transformers_and_carry_no_head(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = finished[0].out
    policy = run / "cells" / cells(run)["dpo", "+SPO"]["id"] / "policy"
    model = AutoModelForCausalLM.from_pretrained(policy)
    assert AutoTokenizer.from_pretrained(policy).chat_template
    assert set(load_file(policy / "model.safetensors")) <= {name for name, _ in model.named_parameters()}


def test_a_second_run_makes_nothing_and_has_the_same_metrics(finished, tmp_path):
    done, store = finished
    again = spo_bench.run(SMALL, tmp_path / "again", store=store)
    assert again.made == 0
    for name in ("metrics.jsonl", "comparisons.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (done.out / name).read_bytes()


def test_a_fresh_store_gives_the_same_numbers(finished, tmp_path):
    spec = {**SMALL, "methods": ["dpo"], "spo": [False, True]}
    done = spo_bench.run(spec, tmp_path / "run", store=tmp_path / "store")
    first, second = cells(finished[0].out), cells(done.out)
    for key in second:
        assert first[key]["keys"] == second[key]["keys"]
        ours, theirs = (
            read_json(out / "cells" / cell["id"] / "scores.json")
            for out, cell in ((done.out, second[key]), (finished[0].out, first[key]))
        )
        assert ours["metrics"] == theirs["metrics"]


def test_baseline_and_twin_see_the_same(finished):
    """Same data, reference, starting policy, loop settings (order, dropout and sampling are functions of them and the seed)."""
    spec = load_spec(SMALL)
    found = {(c.method, c.spo.label() if c.spo else ""): c for c in cells_of(spec, finished[1], "cpu")}
    for method in ("dpo", "kto"):
        baseline, twin = found[method, ""].stages["train"], found[method, "+SPO"].stages["train"]
        ours, theirs = ({n: s.key for n, s in one.inputs.items() if n != "copies"} for one in (baseline, twin))
        assert theirs == ours
        assert [d.split(":")[0] for d in differences(baseline.identity, twin.identity)] == ["config.spo", "copies changed"]
        for name in ("settings", "seed", "split"):
            assert found[method, ""].stages["generate"].config[name] == found[method, "+SPO"].stages["generate"].config[name]
    steps = {
        key: list(read_jsonl(finished[0].out / "cells" / cell["id"] / "train.jsonl"))
        for key, cell in cells(finished[0].out).items()
        if key[0] == "dpo"
    }
    first = [rows[0] for rows in steps.values()]
    assert len({round(row["alignment_loss"], 5) for row in first}) == 1
    assert len({row["pairs"] for row in first}) == 1


def test_shared_stages_are_made_once(finished):
    """7 cells, of which 6 trained: one sft, one reward model, one reference, one pass over mismatched pairs, 7 generations; the
    degraded copies of two SPO variants, each for both methods."""
    counts = {
        kind.name: sum((a / "SEAL").is_file() for a in kind.iterdir())
        for kind in finished[1].iterdir()
        if kind.is_dir() and kind.name not in ("locks", "runs", "checkpoints")
    }
    assert counts == {
        "tokenizer": 1, "model": 1, "data": 1, "sft": 1, "reward_model": 1, "reference": 1, "mismatched": 1,
        "copies": 2, "train": 6, "generate": 7, "score": 7, "reward": 7, "judge": 1 + 6 * 2 + 4,
    }  # fmt: skip


def test_mismatched_pairs_are_scored_once_for_every_learning_rate(tmp_path):
    """They are decided by the order of the rows: by seed and batch size, not by how far a step goes."""
    methods = ["kto", {"name": "kto", "label": "slow", "train": {"learning_rate": 1e-5}}]
    larger = {"name": "kto", "label": "large", "train": {"batch_size": 16}}
    found = {
        cell.method: cell.stages["train"].inputs["mismatched"].key
        for cell in cells_of(load_spec({**SMALL, "methods": [*methods, larger], "spo": [False]}), tmp_path, "cpu")
        if "train" in cell.stages
    }
    assert found.keys() == {"kto", "slow", "large"}
    assert found["kto"] == found["slow"] != found["large"]


def test_data_audit_counts_add_up(finished):
    audit = read_json(finished[0].out / "run.json")["audits"]["embedded/controlled_dialogue"]
    assert audit["overlap"] == {"eval": 0, "heldout": 0}
    for counts in audit["splits"].values():
        assert counts["rows"] == counts["kept"] + counts["dropped"]
        assert counts["bos_1"] == counts["kept"]
    assert audit["splits"]["train"]["eos_once_chosen"] == audit["splits"]["train"]["kept"]


def test_plan_tells_done_missing_and_stale_with_the_reason(finished):
    done, store = finished
    spec = load_spec(SMALL)
    states = stage_states(cells_of(spec, store, "cpu"), Store(store), earlier_keys(done.out))
    assert {s.state for s in states} == {"done"}
    changed = load_spec({**SMALL, "train": {**SMALL["train"], "learning_rate": 2e-4}})
    states = {(s.cell, s.name): s for s in stage_states(cells_of(changed, store, "cpu"), Store(store), earlier_keys(done.out))}
    train = next(s for (cell, name), s in states.items() if name == "train" and "-dpo-s0" in cell)
    assert train.state == "stale"
    assert "config.settings.learning_rate: 0.0001 → 0.0002" in train.why
    sft = next(s for (_, name), s in states.items() if name == "sft")
    assert sft.state == "done"


def files_of(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*") if not path.is_symlink()}


def test_a_finished_run_is_left_as_it_is(finished, tmp_path):
    """The same spec again touches no file; a picture that is gone or cut off, or another spec, makes the report anew."""
    run, store = tmp_path / "run", finished[1]
    spec = {**SMALL, "methods": ["dpo"], "spo": [False, True]}
    first = spo_bench.run(spec, run, store=store)
    before = files_of(run)
    again = spo_bench.run(spec, run, store=store)
    assert (again.cells, again.done, again.made) == (first.cells, first.done, 0)
    assert files_of(run) == before
    picture = next((run / "figures").glob("*.svg"))
    picture.unlink()
    spo_bench.run(spec, run, store=store)
    whole = picture.read_bytes()
    picture.write_bytes(whole[:100])
    spo_bench.run(spec, run, store=store)
    assert picture.read_bytes() == whole
    now = files_of(run)
    spo_bench.run({**spec, "spo": [False]}, run, store=store)
    assert files_of(run)["report.html"] != now["report.html"]
    assert len(list(read_jsonl(run / "cells.jsonl"))) == 2


def test_jobs_give_the_same_metrics(finished, tmp_path):
    """Worker processes write the same artifacts (one thread each here and there, so to the bit)."""
    spec = {**SMALL, "methods": ["dpo"], "spo": [False, True]}
    done = spo_bench.run(spec, tmp_path / "run", store=tmp_path / "store", jobs=2)
    assert not done.failed
    ours = {
        k: read_json(done.out / "cells" / c["id"] / "scores.json")["metrics"]["true_reward"]["ids"]
        for k, c in cells(done.out).items()
    }
    theirs = {
        k: read_json(finished[0].out / "cells" / c["id"] / "scores.json")["metrics"]["true_reward"]["ids"]
        for k, c in cells(finished[0].out).items()
    }
    assert all(theirs[key] == ids for key, ids in ours.items())


def test_a_failing_cell_fails_alone(finished, tmp_path, monkeypatch):
    """A loss that raises fails its two cells with the reason; the others are done, and the report shows the gap."""
    import spo_bench.stages.train as module

    store = tmp_path / "store"
    shutil.copytree(finished[1], store)
    shutil.rmtree(store / "train")
    real = module.get_method

    def broken(name):
        if name == "kto":
            raise RuntimeError("the loss is broken")
        return real(name)

    monkeypatch.setattr(module, "get_method", broken)
    done = spo_bench.run({**SMALL, "spo": [False, True]}, tmp_path / "run", store=store)
    found = cells(done.out)
    assert {key for key, cell in found.items() if cell["status"] == "failed"} == {("kto", ""), ("kto", "+SPO")}
    assert "the loss is broken" in found["kto", ""]["reason"]
    assert "--" in (done.out / "tables" / "main.md").read_text()


def test_fraction_axis_takes_nested_rows_and_its_own_cells(tmp_path):
    spec = {
        **SMALL,
        "methods": ["dpo"],
        "spo": [False],
        "data_axes": {"fraction": [0.25, 1.0]},
        "train": {"batch_size": 4, "learning_rate": 1e-4, "epochs": 1, "max_length": 128},
    }
    done = spo_bench.run({**spec, "rewards": []}, tmp_path / "run", store=tmp_path / "store")
    steps = {
        json.dumps(c["axes"]): len(list(read_jsonl(done.out / "cells" / c["id"] / "train.jsonl")))
        for c in read_jsonl(done.out / "cells.jsonl")
        if c["method"] == "dpo"
    }
    assert steps == {'{"fraction": 0.25}': 3, "{}": 12}


@pytest.mark.parametrize(
    "spo",
    [
        {"text": "on_policy"},
        {"head": "mlp", "loss": "ordinal_logit", "layer": 1, "pool": "last_token", "warmup": 2},
        {"loss": "regression", "head_per_side": True, "op": "mask", "gamma": {"chosen": 0.1, "rejected": 0.2}},
    ],
)
def test_spo_settings_reach_the_trainer(spo, finished, tmp_path):
    spec = {**SMALL, "methods": ["dpo"], "spo": [spo], "rewards": []}
    done = spo_bench.run(spec, tmp_path / "run", store=finished[1])
    assert not done.failed
    (cell,) = (c for c in read_jsonl(done.out / "cells.jsonl") if c["method"] == "dpo")
    assert spo.items() <= cell["spo"].items()


def test_lora_trains_an_adapter_that_opens(finished, tmp_path):
    from peft import AutoPeftModelForCausalLM

    spec = {**SMALL, "methods": ["dpo"], "spo": [False, True], "rewards": [], "train": {**SMALL["train"], "lora": {"rank": 4}}}
    done = spo_bench.run(spec, tmp_path / "run", store=finished[1])
    assert not done.failed
    cell = cells(done.out)["dpo", "+SPO"]
    policy = done.out / "cells" / cell["id"] / "policy"
    assert (policy / "adapter_model.safetensors").is_file()
    model = AutoPeftModelForCausalLM.from_pretrained(policy)
    assert any("lora" in name for name, _ in model.named_parameters())


def test_too_many_unusable_rows_refuse_the_run_and_leave_nothing(tmp_path):
    rows = [
        {"prompt": f"what about plant {i} ?", "chosen": "it is green", "rejected": "it is green" if i % 3 == 0 else "no"}
        for i in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    spec = {**SMALL, "tasks": [{"name": "dialogue", "data": str(tmp_path / "pairs.jsonl")}]}
    with pytest.raises(InputError, match=r"chosen and rejected are identical(.|\n)*max_dropped"):
        spo_bench.run(spec, tmp_path / "run", store=tmp_path / "store")
    assert not (tmp_path / "run").exists()


def test_narrowing_keeps_the_numbers():
    """A cell of a narrowed spec has the keys it has in the whole matrix: sft still learns from both tasks."""
    spec = {**SMALL, "tasks": [SMALL["tasks"][0], {**SMALL["tasks"][0], "name": "controlled_summarization"}], "seeds": [0, 1]}
    whole = {c.id: {n: s.key for n, s in c.stages.items()} for c in cells_of(load_spec(spec), Path("/nowhere"), "cpu")}
    narrowed = load_spec(spec, tasks=["controlled_dialogue"], methods=["dpo"], seeds=[1])
    part = {c.id: {n: s.key for n, s in c.stages.items()} for c in cells_of(narrowed, Path("/nowhere"), "cpu")}
    assert len(part) == 4
    assert all(whole[cell] == keys for cell, keys in part.items())
    assert load_spec(narrowed.model_dump(mode="json")) == narrowed
