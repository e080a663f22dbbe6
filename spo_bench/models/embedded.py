"""The embedded policy: a small Llama with a vocabulary of words, written from a seed, so that nothing is downloaded.

It knows the words of the controlled worlds and no others. ``embedded_vocabulary.txt`` lists them, one token a line; it is made
from the worlds' own texts, and a test fails when the two differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

VERSION = 1  # raise it whenever the same seed gives another directory
VOCABULARY = Path(__file__).with_name("embedded_vocabulary.txt")
PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
ROLES = ("system", "user", "assistant")
SPECIAL = (PAD, BOS, EOS, UNKNOWN, *(f"<{role}>" for role in ROLES))

# Found by experiment: of those tried, what learns both worlds soonest (1,200 steps of 16 demonstrations, 50 s on one core).
# A third layer makes a step dearer and learns no sooner.
ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}

# A conversation is <bos>, then each message after the mark of its role; an answer ends with <eos>.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('a role is one of system, user, assistant') }}"
    "{% endif %}"
    "{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Return the tokens in the order of their ids: the special ones, then those of the vocabulary file."""
    return [*SPECIAL, *VOCABULARY.read_text(encoding="utf-8").split("\n")[:-1]]


def embedded_identity() -> dict[str, Any]:
    """Return what, together with a seed, decides the weights and the tokenizer. Needs no torch."""
    return {
        "embedded": VERSION,
        "architecture": dict(ARCHITECTURE),
        "chat_template": CHAT_TEMPLATE,
        "vocabulary": vocabulary(),
    }


def _tokenizer() -> Any:
    """Return the tokenizer: words, the "___" of a masked phrase, and single marks, each with or without the space before it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = {token: number for number, token in enumerate(vocabulary())}
    inner = Tokenizer(models.WordLevel(tokens, unk_token=UNKNOWN))
    # Every text is read as if a space came first, so a word has one token wherever it stands; decoding drops that space.
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex("▁?([A-Za-z]+|_+)|▁?[^A-Za-z_▁]"), behavior="isolated"),
        ]
    )
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        pad_token=PAD,
        additional_special_tokens=[f"<{role}>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=ARCHITECTURE["max_position_embeddings"],
    )


def build_embedded(directory: Path, seed: int) -> None:
    """Write the untrained policy as an ordinary Hugging Face directory; the same seed writes the same weights.

    Args:
        directory: where to; made if it is not there.
        seed: of the random weights. The global random state is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **ARCHITECTURE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))
