"""Answers and scores as stages make them: which policies may answer, what is recorded, how much is held, in which type."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import POSITIONS, make

from spo_bench.engine.collect import fallbacks
from spo_bench.engine.memory import Size, _cache
from spo_bench.errors import InputError
from spo_bench.files import read_json, read_jsonl, write_json, write_jsonl
from spo_bench.matrix.cells import expand
from spo_bench.matrix.evaluation import Place
from spo_bench.matrix.load import load_spec
from spo_bench.models import numerics
from spo_bench.models.chat import render
from spo_bench.models.decoding import Rows
from spo_bench.models.embedded import build_embedded
from spo_bench.models.numerics import Numerics
from spo_bench.models.policy import load_policy, load_tokenizer
from spo_bench.models.sampling import find_way
from spo_bench.models.source import check_policy
from spo_bench.stages import rounds
from spo_bench.stages.base import Work
from spo_bench.stages.generate import run
from spo_bench.store.hashes import HashCache
from spo_bench.training.examples import stream_seed

CPU = Numerics("cpu", "float32", "float32")
SETTINGS = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0, "batch_size": 3, "backend": "transformers"}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    build_embedded(folder, 0)
    return folder


def rows_of(tokenizer, count=5):
    """Prompts of several lengths, in words that the embedded policy knows."""
    words = [token for token in tokenizer.get_vocab() if token.startswith("▁") and token[1:].isalpha()]
    draw, rows = np.random.default_rng(0), []
    for number in range(count):
        text = " ".join(word[1:] for word in draw.choice(words, 3 + number % 3))
        prompt = [{"role": "user", "content": text}]
        rows.append({"id": str(number), "prompt": prompt, "prompt_text": text, "prompt_ids": render(tokenizer, prompt).ids})
    return rows


@pytest.mark.parametrize(("family", "said"), [("llama", None), ("jamba", "more from token to token")])
def test_a_stop_is_no_part_of_the_answer_and_the_way_taken_is_recorded(family, said, embedded, tmp_path):
    """Half of all tokens end an answer, and most of them are ordinary words, which are not marked as special."""
    tokenizer = load_tokenizer(embedded)
    policy, data, out = (tmp_path / name for name in ("model", "data", "out"))
    data.mkdir()
    out.mkdir()
    make(family, vocab_size=len(tokenizer), max_position_embeddings=64).save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    stops = list(range(0, len(tokenizer), 2))
    write_json(policy / "generation_config.json", {"eos_token_id": stops})
    write_jsonl(data / "eval.jsonl", rows_of(tokenizer))
    config = {
        "settings": SETTINGS,
        "seed": 0,
        "split": "eval",
        "numerics": {"device": "cpu", "dtype": "float32", "held": "float32"},
    }
    run(Work(out, config, {"policy": policy, "base": policy, "data": data}, {"trust_remote_code": False}))
    samples = list(read_jsonl(out / "samples.jsonl"))
    assert "stop" in {one["finish"] for one in samples}
    for one in samples:
        kept = [token for token in one["ids"] if token not in stops]
        assert len(kept) == one["tokens"]
        assert one["answer"] == tokenizer.decode(kept, skip_special_tokens=True).strip()
    found = fallbacks(out)
    assert found == {} if said is None else said in found["decoding"]


def test_several_answers_to_every_row_are_drawn_at_once_with_the_same_numbers(embedded, monkeypatch):
    """Three answers a row in one call of ``sample`` are those of three calls with a seed each, in the same order."""
    tokenizer, model = load_tokenizer(embedded), load_policy(embedded, CPU)
    training = SimpleNamespace(
        objective=SimpleNamespace(model=model, numerics=CPU), tokenizer=tokenizer, settings=SimpleNamespace(max_length=64)
    )
    regime = {"samples": 3, "greedy": False, "human": False}
    work = Work(embedded, {"regime": regime, "generate": SETTINGS}, {"policy": embedded}, {})
    rows, way, calls, sample = rows_of(tokenizer), find_way(model, 64, CPU), [], rounds.sample
    monkeypatch.setattr(rounds, "sample", lambda *given: (calls.append(len(given[1])), sample(*given))[1])
    found = rounds._candidates(work, training, way, rows, None, [], 7)
    assert calls == [3 * len(rows)]
    one_by_one = [rounds._sampled(work, training, way, rows, SETTINGS, [stream_seed(7, "answer", n)]) for n in range(3)]
    wanted = [[drawn[place] for drawn in one_by_one] for place in range(len(rows))]
    assert [[ids for _, ids in one] for one in found] == [[ids for _, ids in one] for one in wanted]


@pytest.mark.parametrize("allowed", [1 << 33, 40_000, 1])
def test_what_is_held_is_what_was_estimated(allowed, monkeypatch):
    """Eight prompts of 20 tokens with 12 to come: 41 columns of 256 bytes a row; as many of 6 rows as fit, at least one."""
    monkeypatch.setattr(numerics, "CACHE_BYTES", allowed)
    model = make("llama")
    way = find_way(model, POSITIONS, CPU)
    rows = Rows(model, [[5] * 20] * 8, 12, 6, way.token_bytes)
    rows.add([0])
    held = sum(part.nbytes for layer in rows.cache.layers for part in (layer.keys, layer.values))
    assert held == _cache(Size(0, 2, 32, 64, keys=2 * 8), 4, 20, {"batch_size": 6, "max_new_tokens": 12})
    assert held == {1 << 33: 6, 40_000: 3, 1: 1}[allowed] * 41 * 256


POLICIES = [
    ({"architectures": ["LlamaForCausalLM"]}, True),
    ({"architectures": ["GPT2LMHeadModel"]}, True),
    ({"architectures": ["Gemma3ForConditionalGeneration"]}, True),
    ({"architectures": ["OwnModel"], "auto_map": {"AutoModelForCausalLM": "own.OwnModel"}}, True),
    ({}, True),
    ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, False),
    ({"architectures": ["BartModel"], "is_encoder_decoder": True}, False),
    ({"architectures": ["BertForMaskedLM"]}, False),
    ({"architectures": ["RobertaModel"]}, False),
    ({"architectures": ["LlamaForSequenceClassification"]}, False),
    ({"architectures": ["OwnModel"], "auto_map": {"AutoModel": "own.OwnModel"}}, False),
]


@pytest.mark.parametrize(("config", "answers"), POLICIES, ids=[json.dumps(config) for config, _ in POLICIES])
def test_a_policy_is_a_decoder(config, answers, tmp_path):
    write_json(tmp_path / "config.json", config)
    if answers:
        check_policy(tmp_path)
        return
    with pytest.raises(InputError, match=r"(?s)is (no causal language model|an encoder with a decoder).*remedy: give a causal"):
        check_policy(tmp_path)


def test_an_encoder_is_refused_while_planning(embedded, tmp_path):
    for path in embedded.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {**config, "architectures": ["BertForMaskedLM"]})
    spec = load_spec({"extends": "quick", "models": [str(tmp_path)]})
    with pytest.raises(InputError, match="BertForMaskedLM"):
        expand(spec, Place("cpu", HashCache(tmp_path)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reward_models_score_in_a_type_of_their_own(dtype, tmp_path):
    """Whatever the policy is computed in: by default in float32, where a score does not depend on what else is in its batch."""
    regime = {"name": "online", "labeller": "reward:trained"}
    relabel = {"name": "reward_augmented", "scores": "reward:trained"}
    for axes in ({}, {"regime": regime}, {"relabel": relabel}):
        spec = load_spec({"extends": "quick", "rewards": ["trained"], "data_axes": axes, "reward_dtype": dtype})
        stages = expand(spec, Place("cuda", HashCache(tmp_path)))[-1].stages
        reward = stages["reward/trained"]
        assert stages["generate"].config["numerics"]["dtype"] == "bfloat16"
        assert [reward.config["numerics"][key] for key in ("dtype", "held")] == [dtype, dtype]
        assert reward.inputs["reward_model"].config["scores"] == dtype
        if "regime" in axes:
            assert stages["train"].config["labeller"]["dtype"] == dtype
        if "relabel" in axes:
            assert stages["rows"].config["relabel"]["dtype"] == dtype
