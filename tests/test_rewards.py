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

from spo_bench.errors import StageError
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


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "read"),
    [
        (CHATML, "<|im_start|> user a <|im_end|> <|im_start|> assistant b c <|im_end|>"),  # Qwen2, SmolLM2
        (HEADERS, "<s> <|start_header_id|> user <|end_header_id|> a <|eot_id|> <|start_header_id|> assistant <|end_header_id|>"
         " b c <|eot_id|>"),  # Llama 3
        (TURNS, "<s> <start_of_turn> user a <end_of_turn> <start_of_turn> model b c <end_of_turn>"),  # Gemma
        (THINKING, "<|im_start|> user a <|im_end|> <|im_start|> assistant <think> </think> b c <|im_end|>"),  # Qwen3
        ("{% for m in messages %} {{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}", "a b c </s>"),  # Mistral
        (TEMPLATE, "<s> a b c </s>"),  # leaves the turn open
        (None, "<s> <unk> : a <unk> : b c </s>"),
    ],
)  # fmt: skip
def test_a_conversation_is_read_as_its_template_ends_it(template, read):
    """The turn of the answer is closed as the others are, once; the end token follows only where nothing closes it."""
    marks = list(dict.fromkeys(word for word in read.split() if word.startswith("<") and word not in MARKS))
    tokenizer = words([*MARKS, *marks, "user", "assistant", "model", ":"], chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    ids = encode(tokenizer, [{"role": "user", "content": "a"}], "b c", 64).ids
    assert tokenizer.convert_ids_to_tokens(ids) == read.split()


@pytest.mark.real
def test_smollm2_reads_a_finished_conversation(smollm2):
    from spo_bench.models.policy import load_tokenizer

    tokenizer = load_tokenizer(smollm2)
    text = tokenizer.decode(encode(tokenizer, [{"role": "user", "content": "Hi."}], "Hello!", 512).ids)
    assert text.endswith("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n")
    assert text.count("<|im_end|>") == 3


def test_what_pads_is_in_no_text_of_the_batch():
    """The padding token, and the first ones that might stand in for it, are in the middle of texts."""
    tokenizer, seen = words(MARKS, pad_token="<pad>"), []
    model, inner = decoder(tokenizer), [(1, 0, 5, 2), (3, 1, 6, 4, 7, 2)]
    model.register_forward_pre_hook(
        lambda _, given, more: seen.append((more["input_ids"], model.config.pad_token_id)), with_kwargs=True
    )
    with torch.no_grad():
        found = rewards_of(model, tokenizer, [Encoded(ids) for ids in inner], CPU).tolist()
    assert found == pytest.approx([read_at_its_end(model, ids) for ids in inner], abs=1e-5)
    assert seen[0][0][0].tolist() == [1, 0, 5, 2, 8, 8]
    assert seen[0][1] == 8
    with pytest.raises(StageError, match="every token"):
        rewards_of(model, tokenizer, [Encoded(tuple(range(12)))], CPU)


@pytest.mark.parametrize(("pad", "saved"), [("<pad>", "<pad>"), ("</s>", "<unk>"), (None, "<unk>")])
def test_a_new_reward_model_knows_what_pads(tmp_path, pad, saved):
    """It is read by other libraries too: in its config, and never the token that ends a text."""
    tokenizer = words(MARKS, chat_template=TEMPLATE, **({"pad_token": pad} if pad else {}))
    decoder(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_reward_model(tmp_path, CPU, fresh=True)
    assert loaded.pad_token == saved
    assert model.config.pad_token_id == tokenizer.convert_tokens_to_ids(saved)


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
