"""generate: one answer a prompt from a policy; shared policies are sampled once a seed."""

from __future__ import annotations

from spo_bench.files import write_json, write_jsonl
from spo_bench.models import vllm
from spo_bench.models.chat import plain_text
from spo_bench.models.policy import load_policy, load_tokenizer, stop_tokens
from spo_bench.models.sampling import find_way, sample
from spo_bench.stages.base import Work, policy_at
from spo_bench.stages.data import eval_prompts, load_split
from spo_bench.training.examples import stream_seed


def run(work: Work) -> None:
    """Write ``samples.jsonl``: id (of the row), prompt, answer, ids, tokens, finish ("stop" or "length"); and ``summary.json``:
    decoding_fallback, why answers were not decoded in rows, null where they were.

    Config: settings, seed, split ("eval": one row a distinct prompt; "train": every row), numerics. A row's answer is drawn from
    a random stream of its own, so what else is in the split does not change it.
    Inputs: policy, base (what an adapter sits on), data.
    """
    policy, base, trust = policy_at(work.inputs["policy"]), work.inputs["base"], work.local["trust_remote_code"]
    tokenizer = load_tokenizer(base, trust)
    data = work.inputs["data"]
    rows = eval_prompts(data) if work.config["split"] == "eval" else load_split(data, work.config["split"])
    settings = work.config["settings"]
    stops = stop_tokens(base, tokenizer)
    prompts = [row["prompt_ids"] for row in rows]
    seeds = [stream_seed(work.config["seed"], "sampling", row["id"]) for row in rows]
    fallback = None
    if settings["backend"] == "vllm":
        answers = vllm.sample(policy, base, prompts, settings, stops, seeds, work.numerics, trust)
    else:
        model = load_policy(policy, work.numerics, base=base, trust_remote_code=trust)
        way = find_way(model, max(map(len, prompts), default=1) + settings["max_new_tokens"], work.numerics)
        answers, fallback = sample(model, prompts, settings, stops, seeds, work.numerics, way), way.obstacle
    samples = []
    for row, ids in zip(rows, answers, strict=True):
        stopped = bool(ids) and ids[-1] in stops
        samples.append(
            {
                "id": row["id"],
                "prompt": plain_text(row["prompt"]),
                # The token that stopped it need not be marked as special.
                "answer": tokenizer.decode(ids[: len(ids) - stopped], skip_special_tokens=True).strip(),
                "ids": ids,
                "tokens": len(ids) - stopped,
                "finish": "stop" if stopped else "length",
            }
        )
    write_jsonl(work.out / "samples.jsonl", samples)
    write_json(work.out / "summary.json", {"decoding_fallback": fallback})
