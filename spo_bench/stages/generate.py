"""generate: one answer a prompt from a policy; shared policies are sampled once a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spo_bench.files import write_json, write_jsonl
from spo_bench.models import vllm
from spo_bench.models.chat import plain_text
from spo_bench.models.policy import load_policy, load_tokenizer, stop_tokens
from spo_bench.models.sampling import find_way, sample
from spo_bench.ranks import ALONE, Ranks
from spo_bench.stages.base import Work, policy_at
from spo_bench.stages.data import eval_prompts, load_split
from spo_bench.store.checkpoints import Checkpoint, State
from spo_bench.training.examples import stream_seed

BLOCK = 4  # prompts answered between two checkpoints, as many times as are under way at once


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
    if settings["backend"] == "vllm":
        answers, fallback = vllm.sample(policy, base, prompts, settings, stops, seeds, work.numerics, trust), None
    else:
        model = load_policy(policy, work.numerics, base=base, trust_remote_code=trust)
        way = find_way(model, max(map(len, prompts), default=1) + settings["max_new_tokens"], work.numerics)

        def some(places: Sequence[int]) -> list[list[int]]:
            asked, drawn = [prompts[i] for i in places], [seeds[i] for i in places]
            return sample(model, asked, settings, stops, drawn, work.numerics, way)

        answers, fallback = in_blocks(prompts, BLOCK * settings["batch_size"], some, work.checkpoint, work.ranks), way.obstacle
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


def in_blocks(
    prompts: Sequence[Sequence[int]],
    size: int,
    some: Callable[[Sequence[int]], list[list[int]]],
    checkpoint: Checkpoint,
    ranks: Ranks = ALONE,
) -> list[list[int]]:
    """Return the answers to prompts, block by block: what is answered together decides how sums round, so a block is answered
    as a whole, or, after the stage was stopped, again.

    Args:
        prompts: token ids.
        size: prompts of a block, which are of like length.
        some: places of prompts -> their answers.
        checkpoint: where answers are kept between blocks.
        ranks: who answers, each a block at a time.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), list(prompts[i]), i))
    saved = checkpoint.load()
    found: dict[int, list[int]] = dict(saved.values["answers"]) if saved else {}

    def state() -> State:
        return {}, {"answers": list(found.items())}

    with checkpoint.at_any_time(state):
        blocks = [order[start : start + size] for start in range(0, len(order), size)]
        left = [places for places in blocks if places[0] not in found]
        for answered in ranks.spread(left, lambda places: dict(zip(places, some(places), strict=True))):
            for answers in answered:
                found.update(answers)
            checkpoint.step(state)
    return [found[place] for place in range(len(prompts))]
