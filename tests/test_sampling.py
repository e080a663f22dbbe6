"""Answers: the same as one by one and as transformers gives them, drawn with the probabilities asked for, ended where they end."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny_models import FAMILIES, POSITIONS, RECURRENT, TRIES, VOCABULARY, make
from transformers import GenerationConfig

from spo_bench.errors import InputError, StageError
from spo_bench.models import decoding, numerics, vllm
from spo_bench.models.decoding import SHARED, Rows, Way
from spo_bench.models.numerics import Numerics
from spo_bench.models.sampling import choose, draws, find_way, sample

CPU = Numerics("cpu", "float32", "float32")
STOP = 2
LIMIT = 12


def settings(**changes):
    return {"max_new_tokens": LIMIT, "temperature": 1.0, "top_p": 1.0, "batch_size": 3} | changes


def obstacle(model):
    return find_way(model, POSITIONS, CPU).obstacle


def some_prompts(common=SHARED + 1):
    """Eight prompts of six lengths, two of them equal, with a common beginning."""
    draw = np.random.default_rng(0)
    start = draw.integers(3, VOCABULARY, common).tolist()
    prompts = [start + draw.integers(3, VOCABULARY, n).tolist() for n in (5, 9, 2, 9, 1, 7, 11)]
    return [*prompts, list(prompts[1])]


def by_transformers(model, prompts, stops=(STOP,)):
    """The greedy answers of ``generate``, one prompt at a time."""
    model.generation_config = GenerationConfig(max_new_tokens=LIMIT, do_sample=False, eos_token_id=list(stops), pad_token_id=0)
    return [
        model.generate(input_ids=torch.tensor([one]), attention_mask=torch.ones(1, len(one), dtype=torch.int64))[
            0, len(one) :
        ].tolist()
        for one in prompts
    ]


# RWKV's own batches are not what its sequences are alone, whoever makes them.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "rwkv"])
def test_greedy_answers_are_those_of_transformers_one_by_one(family):
    """Eight prompts, three at a time: rows end and begin at different steps, behind a common beginning, in every family."""
    model = make(family)
    assert sample(model, some_prompts(), settings(temperature=0), [STOP], range(8), CPU) == by_transformers(model, some_prompts())


def test_the_common_families_are_decoded_in_rows_and_recurrent_ones_are_not():
    """A family whose last layers read the keys of earlier ones has more in its cache, too."""
    in_rows = {family for family in FAMILIES if obstacle(make(family)) is None}
    assert TRIES.keys() - in_rows == {"gemma4"}
    assert not in_rows & RECURRENT.keys()


def test_a_model_that_gives_other_numbers_in_rows_is_not_decoded_in_them(monkeypatch):
    """One that does not see the keys of earlier tokens is found out by its logits, one that fails by its error."""
    model, update = make("llama"), decoding.Columns.update

    def forgetful(self, *states):
        keys, values = update(self, *states)
        return torch.zeros_like(keys), values

    monkeypatch.setattr(decoding.Columns, "update", forgetful)
    assert "off by" in obstacle(model)
    monkeypatch.setattr(decoding.Columns, "update", lambda self: None)
    assert "cannot be laid out in rows (TypeError" in obstacle(model)


def test_in_bfloat16_rounding_is_no_obstacle():
    """Weights in float32 under autocast round as if they were held in bfloat16, by more than is allowed in float32."""
    model = make("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=4)
    way = find_way(model, POSITIONS, Numerics("cpu", "bfloat16", "float32"))
    assert way.obstacle is None
    assert way.token_bytes in (4 * 2 * 2 * 64 * size for size in (2, 4))  # layers, keys and values, heads, their size


def test_no_memory_left_is_no_obstacle(monkeypatch):
    def full(*states):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(decoding.Columns, "update", full)
    with pytest.raises(torch.OutOfMemoryError):
        obstacle(make("llama"))


STRETCHED = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 24,
        "short_factor": [1.0, 1.0, 1.0, 1.0],
        "long_factor": [1.0, 3.0, 5.0, 9.0],
        "factor": 2.0,
    },
}


@pytest.mark.parametrize("kind", list(STRETCHED))
def test_where_positions_depend_on_the_longest_sequence_an_answer_is_the_one_alone(kind):
    """As by a model that has run nothing before: prompts of 18 to 28 tokens, 24 positions as trained, the longest one first."""

    def stretched():
        return make("llama", rope_parameters=dict(STRETCHED[kind]), max_position_embeddings=24)

    prompts = sorted(some_prompts(), key=len, reverse=True)
    wanted = [by_transformers(stretched(), [one])[0] for one in prompts]
    model = stretched()
    assert sample(model, prompts, settings(temperature=0), [STOP], range(8), CPU) == wanted
    assert kind in find_way(model, 25, CPU).obstacle
    assert find_way(stretched(), 24, CPU).obstacle is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "jamba"])
def test_an_answer_does_not_depend_on_what_is_answered_beside_it(family):
    """Alone, by threes and all at once, in another order: the same draws give the same answers."""
    model, prompts = make(family), some_prompts()
    alone = [sample(model, [one], settings(top_p=0.9), [STOP], [seed], CPU)[0] for seed, one in enumerate(prompts)]
    assert len({tuple(one) for one in alone}) == len(alone)  # equal prompts with other seeds have other answers
    for size in (1, 3, 8):
        assert sample(model, prompts, settings(top_p=0.9, batch_size=size), [STOP], range(8), CPU) == alone
    turned = sample(model, prompts[::-1], settings(top_p=0.9), [STOP], range(7, -1, -1), CPU)
    assert turned == alone[::-1]


def test_many_short_answers_move_the_cache_and_little_room_holds_few_rows(monkeypatch):
    """Sixty prompts through three places; then with room for the tokens of one row only."""
    model = make("llama")
    draw = np.random.default_rng(1)
    prompts = [draw.integers(3, VOCABULARY, length).tolist() for length in draw.integers(1, 9, 60)]
    wanted = by_transformers(model, prompts)
    assert sample(model, prompts, settings(temperature=0), [STOP], range(60), CPU) == wanted
    monkeypatch.setattr(numerics, "CACHE_BYTES", 1)
    assert sample(model, prompts, settings(temperature=0), [STOP], range(60), CPU) == wanted


def test_what_prompts_share_is_computed_once(monkeypatch):
    """Tokens that go through the model before the first answer begins: the common beginning, then each prompt's own rest."""
    model, prompts = make("llama"), [[*range(3, 23), last, 30] for last in (40, 41, 40, 40)]
    seen = []
    monkeypatch.setattr(
        model.model,
        "forward",
        lambda *, forward=model.model.forward, **more: (seen.append(more["input_ids"]), forward(**more))[1],
    )
    rows = Rows(model, prompts, LIMIT, 4)
    rows.add(range(4))
    assert [ids.tolist() for ids in seen] == [[list(range(3, 23))], [[40], [41]]]


def test_every_stop_ends_an_answer_and_the_limit_does():
    """An answer ends with its first stop, or has exactly as many tokens as allowed; no stop is left inside."""
    model, stops = make("gpt2"), [STOP, *range(5, 8)]
    found = sample(model, some_prompts(0), settings(temperature=2.0), stops, range(8), CPU)
    assert {one[-1] in stops for one in found} == {True, False}
    for one in found:
        assert not set(one[:-1]) & set(stops)
        assert one[-1] in stops or len(one) == LIMIT
    assert sample(model, [[5, 6]], settings(max_new_tokens=1), [], [0], CPU)[0][1:] == []
    assert sample(model, [], settings(), stops, [], CPU) == []


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8), (1.0, 0.05)])
def test_tokens_are_drawn_with_the_probabilities_asked_for(temperature, top_p):
    """20,000 draws against softmax(logits / T), cut to the most probable tokens that together reach top_p."""
    torch.manual_seed(0)
    logits, count = 2 * torch.randn(9), 20_000
    shares = (logits.double() / temperature).softmax(0)
    order = shares.argsort(descending=True)
    kept = order[shares[order].cumsum(0) - shares[order] < top_p]
    wanted = torch.zeros(9, dtype=torch.float64).index_put((kept,), shares[kept] / shares[kept].sum())
    chosen = choose(logits.repeat(count, 1), torch.from_numpy(draws(0, count)), settings(temperature=temperature, top_p=top_p))
    counts = torch.bincount(chosen, minlength=9)
    assert not counts[wanted == 0].any()
    if len(kept) > 1:
        assert chisquare(counts[wanted > 0], count * wanted[wanted > 0]).pvalue > 0.01


def test_the_most_probable_tokens_of_a_large_vocabulary():
    """A flat distribution needs more candidates than are ranked at first: half of 1,000 equal tokens and a heavier one."""
    logits = torch.zeros(2, 1000)
    logits[0, 7], logits[1, 7] = 3.0, 30.0
    weight = float(np.exp(3))
    numbers = torch.tensor([0.0, 0.999], dtype=torch.float64)
    for number in numbers:
        chosen = choose(logits.clone(), number.repeat(2), settings(top_p=weight / (weight + 999)))
        assert chosen.tolist() == [7, 7]
    flat = torch.linspace(1, 0, 1000).repeat(1, 1)
    shares = flat.double().softmax(1)[0]
    last = int((shares.cumsum(0) < 0.6).sum())
    assert choose(flat.clone(), torch.tensor([1 - 1e-12]), settings(top_p=0.6)).tolist() == [last]


def test_only_rows_that_need_it_rank_more_tokens(monkeypatch):
    """Of a peaked, a middling and a flat row of 1,000 tokens 64, then 512, then all are ranked, for 3, 2 and 1 rows."""
    logits = torch.linspace(0, 1, 1000)[None] * torch.tensor([[1000.0], [10.0], [0.1]])
    ranked, topk = [], torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda part, count, dim: (ranked.append((len(part), count)), topk(part, count, dim))[1]
    )
    found = choose(logits.clone(), torch.full((3,), 1e-9), settings(top_p=0.9)).tolist()
    assert ranked == [(3, 64), (2, 512), (1, 1000)]
    for row, token in zip(logits, found, strict=True):
        shares = row.double().softmax(0).flip(0)
        assert token == 999 - int((shares.cumsum(0) < 0.9).sum())


def test_the_ends_of_the_unit_interval_give_tokens_that_can_be():
    """The number 0 is the first token with any weight, the one just below 1 the last."""
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.5, -torch.inf]])
    for number, token in ((0.0, 1), (1 - 2**-53, 3)):
        assert choose(logits.clone(), torch.tensor([number], dtype=torch.float64), settings()).tolist() == [token]


@pytest.mark.parametrize("changes", [{}, {"top_p": 0.9}, {"temperature": 0}])
@pytest.mark.parametrize("family", ["llama", "falcon-h1"])
def test_logits_that_are_no_numbers_end_the_stage(family, changes):
    model = make(family)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(StageError, match="diverged"):
        sample(model, some_prompts(), settings(**changes), [STOP], range(8), CPU, Way(None if family == "llama" else "recurrent"))


def test_a_stream_is_its_seed_s_and_its_beginning_does_not_depend_on_how_much_is_drawn():
    assert np.array_equal(draws(3, 5), draws(3, 50)[:5])
    assert not np.array_equal(draws(3, 5), draws(4, 5))


def test_a_policy_keeps_its_own_generation_settings():
    for family in ("llama", "jamba"):
        model = make(family)
        model.generation_config.top_k = 7
        sample(model, some_prompts(), settings(), [STOP], range(8), CPU)
        assert model.generation_config.top_k == 7


@pytest.mark.real
def test_smollm2_answers_as_with_transformers(smollm2):
    """Greedy answers of the real model, four at a time, against ``generate`` one by one."""
    from spo_bench.models.chat import render
    from spo_bench.models.policy import load_policy, load_tokenizer, stop_tokens

    model, tokenizer = load_policy(smollm2, CPU), load_tokenizer(smollm2)
    asked = ["Name three colours.", "What is the capital of France?", "Say yes.", "Count to five, please, slowly.", "Say yes."]
    prompts = [render(tokenizer, [{"role": "user", "content": text}]).ids for text in asked]
    stops = stop_tokens(smollm2, tokenizer)
    assert obstacle(model) is None
    found = sample(model, prompts, settings(temperature=0, batch_size=4), stops, range(5), CPU)
    assert found == by_transformers(model, prompts, stops)


# vLLM cannot be installed on a machine without a GPU: what stands in for it takes the names its own functions have.


class FakeEngine:
    def __init__(
        self,
        model,
        *,
        dtype,
        load_format,
        trust_remote_code,
        max_model_len,
        max_num_seqs,
        gpu_memory_utilization,
        skip_tokenizer_init,
        enable_lora=False,
        max_lora_rank=16,
    ):
        self.made = FakeEngine.last = SimpleNamespace(**{k: v for k, v in locals().items() if k != "self"}, ended=False)
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: setattr(self.made, "ended", True)))

    def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
        if lora_request and lora_request[2].endswith("broken"):
            raise RuntimeError("broken")
        self.made.lora_request, self.made.params = lora_request, sampling_params
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(*one["prompt_token_ids"][:1], STOP))]) for one in prompts]


def params(*, max_tokens, temperature, top_p, seed, stop_token_ids, ignore_eos, detokenize):
    return SimpleNamespace(**locals())


@pytest.fixture
def fake_vllm(monkeypatch):
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams, package.TokensPrompt = FakeEngine, params, dict
    request.LoRARequest = lambda lora_name, lora_int_id, lora_path: (lora_name, lora_int_id, lora_path)
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(vllm, "version", lambda name: {"vllm": "0.19.1"}[name])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (50 * 2**30, 100 * 2**30))


def test_vllm_is_called_with_everything_that_decides_an_answer(fake_vllm, tmp_path):
    cuda = Numerics("cuda", "bfloat16", "bfloat16")
    asked = settings(temperature=0.7, top_p=0.9, batch_size=5)
    found = vllm.sample(tmp_path, tmp_path, [[7, 8], [9]], asked, [STOP, 4], [11, 12], cuda)
    made = FakeEngine.last
    assert found == [[7, STOP], [9, STOP]]
    assert (made.model, made.dtype, made.max_model_len, made.max_num_seqs) == (str(tmp_path), "bfloat16", 2 + LIMIT, 5)
    assert (made.enable_lora, made.lora_request) == (False, None)
    assert (made.load_format, made.trust_remote_code) == ("safetensors", False)
    assert [one.seed for one in made.params] == [11, 12]
    one = made.params[0]
    assert (one.max_tokens, one.temperature, one.top_p, one.stop_token_ids) == (LIMIT, 0.7, 0.9, [STOP, 4])
    assert one.ignore_eos
    assert not one.detokenize
    assert made.skip_tokenizer_init
    assert made.gpu_memory_utilization == pytest.approx(0.95 * 0.5)
    assert made.ended
    assert vllm.sample(tmp_path, tmp_path, [], asked, [STOP], [], cuda) == []


def test_vllm_takes_an_adapter_beside_its_base(fake_vllm, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 12}')
    vllm.sample(tmp_path, tmp_path / "base", [[7]], settings(), [STOP], [1], Numerics("cuda", "bfloat16", "bfloat16"))
    made = FakeEngine.last
    assert (made.model, made.enable_lora, made.max_lora_rank) == (str(tmp_path / "base"), True, 16)
    assert made.lora_request == ("policy", 1, str(tmp_path))


def test_vllm_s_engine_ends_where_it_fails(fake_vllm, tmp_path):
    policy = tmp_path / "broken"
    policy.mkdir()
    (policy / "adapter_config.json").write_text('{"r": 12}')
    with pytest.raises(RuntimeError):
        vllm.sample(policy, tmp_path, [[7]], settings(), [STOP], [1], Numerics("cuda", "bfloat16", "bfloat16"))
    assert FakeEngine.last.ended


@pytest.mark.parametrize("installed", ["0.9.2", "0.19.0", "0.18.1+cu128"])
def test_a_vllm_that_does_not_know_this_transformers_is_refused(installed, monkeypatch):
    monkeypatch.setattr(vllm, "version", lambda name: installed)
    with pytest.raises(InputError, match="with vllm 0"):
        vllm.check("cuda")
    monkeypatch.setattr(vllm, "version", lambda name: "0.20.0rc1")
    assert vllm.check("cuda", 512) == "0.20.0rc1"
    with pytest.raises(InputError, match="rank 513"):
        vllm.check("cuda", 513)


def test_a_matrix_with_vllm_is_refused_before_anything_is_made_where_it_cannot_answer(tmp_path):
    from spo_bench.matrix.cells import expand
    from spo_bench.matrix.evaluation import Place
    from spo_bench.matrix.load import load_spec
    from spo_bench.store.hashes import HashCache

    spec = load_spec({"extends": "quick", "generate": {"backend": "vllm"}})
    for device, said in (("cpu", "on device cpu"), ("cuda:1", "on device cuda:1"), ("cuda", "without the package")):
        with pytest.raises(InputError, match=said):
            expand(spec, Place(device, HashCache(tmp_path)))
