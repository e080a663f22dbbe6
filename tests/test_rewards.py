"""Reward models: a score is the model's own for the text alone, whatever shares its batch."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from spo_bench.models import reward
from spo_bench.models.numerics import Numerics
from spo_bench.models.reward import Encoded, encode, load_reward_model, rewards_of, score_answers

CPU = Numerics("cpu", "float32", "float32")
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.5}
MARKS = ["<pad>", "<s>", "</s>", "<unk>"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }} {% endfor %}"
ITEMS = [
    ([{"role": "user", "content": text}], answer) for text, answer in (("a b c d e f g h", "a b"), ("a", "h"), ("b c", "d e f"))
]


def words(marks, **settings):
    """A tokenizer of words that, asked for special tokens, puts one before every text, as Llama's does."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*marks, *"abcdefgh"])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **settings)


def decoder(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **SIZE)
    return LlamaForSequenceClassification(config).eval()


def read_at_its_end(model, ids):
    """The score at the last token of one sequence, from the model's states and its head."""
    with torch.no_grad():
        return float(model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]))


@pytest.mark.parametrize("pad", ["<pad>", "</s>", None])
def test_a_decoder_is_read_at_its_last_token_whatever_pads(pad):
    """Also where the end token pads: the one that ends a text belongs to it. The model's own setting stays."""
    tokenizer = words(MARKS, chat_template=TEMPLATE, **({"pad_token": pad} if pad else {}))
    model = decoder(tokenizer)
    together = score_answers(model, tokenizer, ITEMS, CPU, 64)
    for (messages, answer), score in zip(ITEMS, together, strict=True):
        ids = encode(tokenizer, messages, answer, 64).ids
        assert ids[-1] == tokenizer.eos_token_id
        assert score == pytest.approx(read_at_its_end(model, ids), abs=1e-5)
        assert score == pytest.approx(score_answers(model, tokenizer, [(messages, answer)], CPU, 64)[0], abs=1e-5)
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_sequence_that_ends_with_the_padding_token_is_read_there():
    tokenizer = words(MARKS, pad_token="<pad>")
    model, ends = decoder(tokenizer), [(1, 5, 0), (1, 6), (1, 7, 8, 9, 4)]
    with torch.no_grad():
        found = rewards_of(model, tokenizer, [Encoded(ids) for ids in ends], CPU).tolist()
    assert found == pytest.approx([read_at_its_end(model, ids) for ids in ends], abs=1e-5)


def test_an_encoder_s_score_does_not_depend_on_padding():
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*MARKS, "[SEP]", *"abcdefgh"])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("<s> $A [SEP]", "<s> $A [SEP] $B:1 [SEP]:1", [("<s>", 1), ("[SEP]", 4)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", sep_token="[SEP]")
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **SIZE)).eval()
    for item, score in zip(ITEMS, score_answers(model, tokenizer, ITEMS, CPU, 64), strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(item[0][0]["content"], item[1], return_tensors="pt")).logits
        assert score == pytest.approx(float(alone), abs=1e-5)


@pytest.mark.parametrize("template", [TEMPLATE, None])
@pytest.mark.parametrize("limit", [64, 4])
def test_one_token_begins_a_text_even_where_template_and_tokenizer_both_add_it(template, limit):
    """Too long a text loses what comes after it, and keeps its end."""
    tokenizer = words(MARKS, chat_template=template, pad_token="<pad>")
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    for messages, answer in ITEMS:
        ids = encode(tokenizer, messages, answer, limit).ids
        assert ids.count(tokenizer.bos_token_id) == 1
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert len(ids) <= limit


def test_equal_items_are_scored_once(monkeypatch):
    tokenizer = words(MARKS, chat_template=TEMPLATE, pad_token="<pad>")
    model, scored = decoder(tokenizer), []
    monkeypatch.setattr(reward, "rewards_of", lambda *given: (scored.extend(given[2]), rewards_of(*given))[1])
    found = score_answers(model, tokenizer, [*ITEMS, *ITEMS], CPU, 64, batch_tokens=1)
    assert len(scored) == len(ITEMS)
    assert found[: len(ITEMS)] == found[len(ITEMS) :]


def test_a_reward_model_without_a_padding_token_is_saved_as_it_was(tmp_path):
    """What pads in a batch is nobody's business outside it."""
    tokenizer = words(MARKS, chat_template=TEMPLATE)
    decoder(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_reward_model(tmp_path, CPU)
    scores = score_answers(model, loaded, ITEMS, CPU, 64)
    assert model.config.pad_token_id is None
    assert scores == pytest.approx([read_at_its_end(model, encode(loaded, *item, 64).ids) for item in ITEMS], abs=1e-5)
