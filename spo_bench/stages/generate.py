"""generate: one answer a prompt from a policy; shared policies are sampled once a seed."""

from __future__ import annotations

from spo_bench.files import write_jsonl
from spo_bench.models import vllm
from spo_bench.models.chat import plain_text
from spo_bench.models.policy import load_policy, load_tokenizer, stop_tokens
from spo_bench.models.sampling import sample
from spo_bench.stages.base import Work, policy_at
from spo_bench.stages.data import eval_prompts, load_split
from spo_bench.training.examples import stream_seed


def run(work: Work) -> None:
    """Write ``samples.jsonl``: id (of the row), prompt, answer, ids, tokens, finish ("stop" or "length").

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
    if settings["backend"] == "vllm":
        answers = vllm.sample(policy, base, prompts, settings, stops, seeds, work.numerics, trust)
    else:
        model = load_policy(policy, work.numerics, base=base, trust_remote_code=trust)
        answers = sample(model, prompts, settings, stops, seeds, work.numerics)
    samples = []
    for row, ids in zip(rows, answers, strict=True):
        stopped = bool(ids) and ids[-1] in stops
        samples.append(
            {
                "id": row["id"],
                "prompt": plain_text(row["prompt"]),
                "answer": tokenizer.decode(ids, skip_special_tokens=True).strip(),
                "ids": ids,
                "tokens": len(ids) - stopped,
                "finish": "stop" if stopped else "length",
            }
        )
    write_jsonl(work.out / "samples.jsonl", samples)
