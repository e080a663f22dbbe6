"""One rendering path from messages to token ids, for training, generation and scoring alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# For models without a chat template. The boundary falls after a line break, where tokenizers do not merge.
ROLES = ("system", "user", "assistant")
MARK = "ANSWER-ENDS-HERE"  # stands for an answer where only what a template puts after it matters
PLAIN = {"system": "{}\n\n", "user": "User: {}\n\n", "assistant": "Assistant:\n{}\n\n", "reply": "Assistant:\n"}


@dataclass(frozen=True)
class Rendered:
    """A rendered prompt: its text, and its token ids with exactly the special tokens the template asks for."""

    text: str
    ids: list[int]


def render(tokenizer: Any, prompt: Sequence[Mapping[str, str]]) -> Rendered:
    """Render chat messages up to the point where the assistant's answer begins.

    With a chat template, the template decides about the beginning-of-text token; without one it is added once where the
    tokenizer has it.
    """
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template([dict(m) for m in prompt], add_generation_prompt=True, tokenize=False)
    else:
        text = "".join(PLAIN[m["role"]].format(m["content"]) for m in prompt) + PLAIN["reply"]
        if tokenizer.bos_token and not text.startswith(tokenizer.bos_token):
            text = tokenizer.bos_token + text
    return Rendered(text, list(tokenizer(text, add_special_tokens=False)["input_ids"]))


def conversation_ids(tokenizer: Any, prompt: Sequence[Mapping[str, str]], answer: str) -> list[int]:
    """Return the ids of a prompt with its answer as a finished conversation, as reward models read it.

    With a chat template it is all the template's work: how a turn ends, and what comes after it. Only where the template puts
    nothing after an answer, the end token is added. Without a template, a prompt is followed by its completion.
    """
    if not tokenizer.chat_template:
        ids = [*render(tokenizer, prompt).ids, *tokenizer(answer, add_special_tokens=False)["input_ids"]]
        return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]

    def rendered(text: str) -> str:
        messages = [*(dict(message) for message in prompt), {"role": "assistant", "content": text}]
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False))

    ids = list(tokenizer(rendered(answer), add_special_tokens=False)["input_ids"])
    closed = rendered(MARK).rpartition(MARK)[2].strip() or tokenizer.eos_token_id is None
    return ids if closed else [*ids, tokenizer.eos_token_id]


def completion_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of an answer, tokenised on its own, closed by the end token."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def special_ids(tokenizer: Any) -> set[int]:
    """Return the tokens no answer's text may hold; the unknown word is none of them."""
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def plain_text(prompt: Sequence[Mapping[str, str]]) -> str:
    """Return a prompt as text for a reader or a judge: a single user message as it is, a dialogue with its speakers."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)
