"""Answers of a policy, sampled in batches of like length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from spo_bench.models.numerics import Numerics


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: Mapping[str, Any],
    stops: Sequence[int],
    seeds: Sequence[int],
    numerics: Numerics,
) -> list[list[int]]:
    """Return the token ids of one answer a prompt, the end token included where the policy stopped by itself.

    Args:
        model, tokenizer: the policy.
        prompts: token ids of the prompts.
        settings: max_new_tokens, temperature (0: greedy), top_p, batch_size.
        stops: tokens that end an answer; the first one pads.
        seeds: one a batch. Batches are cut from the prompts sorted by length, so two policies given the same prompts and seeds
            draw from the same random stream at every place.
        numerics: device and compute type.
    """
    greedy = settings["temperature"] == 0
    kept = model.generation_config
    # A model's own generation defaults (top_k, penalties) would make two models sample differently: none is kept.
    model.generation_config = GenerationConfig(
        max_new_tokens=settings["max_new_tokens"],
        do_sample=not greedy,
        temperature=1.0 if greedy else settings["temperature"],
        top_p=1.0 if greedy else settings["top_p"],
        top_k=0 if not greedy else 50,
        eos_token_id=list(stops),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        use_cache=True,
    )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    size = settings["batch_size"]
    for number, start in enumerate(range(0, len(order), size)):
        members = order[start : start + size]
        width = max(len(prompts[i]) for i in members)
        ids = torch.full((len(members), width), tokenizer.pad_token_id, dtype=torch.int64)
        present = torch.zeros_like(ids)
        for line, i in enumerate(members):
            ids[line, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            present[line, width - len(prompts[i]) :] = 1
        torch.manual_seed(seeds[number])
        with numerics.autocast():
            out = model.generate(input_ids=ids.to(numerics.device), attention_mask=present.to(numerics.device))
        for i, line in zip(members, out[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(line) if token in stops), len(line) - 1)
            answers[i] = line[: end + 1]
    model.generation_config = kept  # a policy that is saved keeps its own
    return answers
