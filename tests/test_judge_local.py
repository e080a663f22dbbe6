"""The judge that runs here: verdicts from a model's own logits, and the models and templates it refuses."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_model
from tiny_models import make
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from spo_bench.errors import InputError, StageError
from spo_bench.judging.language import Request
from spo_bench.judging.local import LocalJudge
from spo_bench.judging.prompt import prompts
from spo_bench.judging.reading import LETTERS, MARGIN
from spo_bench.judging.verdict import Question
from spo_bench.models.chat import render
from spo_bench.models.embedded import build_embedded
from spo_bench.models.numerics import Numerics
from spo_bench.training.probe import shares_prefixes

CPU = Numerics("cpu", "float32", "float32")
TEMPLATE = "Which answer is better?\n{prompt}\nFirst: {a}\nSecond: {b}"
WORDS = [
    "<unk>",
    "▁",
    "▁A",
    "▁B",
    "A",
    "B",
    *["▁which", "▁answer", "▁is", "▁better", "▁good", "▁bad", "▁fern", "▁first", "▁second"],
]


def tokenizer(words=WORDS, prefix="always", splits=False):
    """A tokenizer of words; ``prefix`` puts the mark of a space before a text, ``splits`` makes it a token of its own."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    marks = [pre_tokenizers.Metaspace(prepend_scheme=prefix, split=True)]
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [*marks, pre_tokenizers.Split(Regex("▁"), behavior="isolated")] if splits else marks
    )
    inner.decoder = decoders.Metaspace(prepend_scheme=prefix)
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", name_or_path="org/small-judge")


def judge(model=None, words=None, **changes):
    settings = {"model": model or tiny_model(), "tokenizer": words or tokenizer(), "template": TEMPLATE, "numerics": CPU}
    return LocalJudge(**{**settings, "max_length": 256, **changes})


def question(a="good fern", b="bad", name="q"):
    return Question(name, "which fern is better", a, b, {})


def p_first(model, words, first, second, letters=("▁A", "▁B")):
    """P(A) / (P(A) + P(B)) from the logits of the plain sequence."""
    (text,) = prompts(TEMPLATE, question(first, second), ("a",), "logprobs", 0)
    ids = render(words, [{"role": "user", "content": text}]).ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return float(logits[words.convert_tokens_to_ids(list(letters))].softmax(0)[0])


def firsts(verdict):
    """Return the probability of the answer shown first, of each order: an order's score is that of answer a."""
    return [order["score"] if order["first"] == "a" else 1 - order["score"] for order in verdict.orders]


def test_a_verdict_is_the_mean_of_both_orders_of_the_models_own_probabilities():
    model, words = tiny_model(), tokenizer()
    (verdict,) = judge(model, words).compare([question()])
    there, back = p_first(model, words, "good fern", "bad"), p_first(model, words, "bad", "good fern")
    assert verdict.score == pytest.approx((there + 1 - back) / 2, abs=1e-5)
    assert firsts(verdict) == pytest.approx([there, back], abs=1e-5)
    near = abs(verdict.score - 0.5) <= MARGIN
    assert verdict.outcome == ("tie" if near else "a" if verdict.score > 0.5 else "b")


def test_swapped_answers_mirror_the_verdict_and_equal_ones_tie():
    there, back, equal = judge().compare([question(), question("bad", "good fern"), question("fern", "fern")])
    assert there.score == pytest.approx(1 - back.score, abs=1e-5)
    assert (equal.outcome, equal.score) == ("tie", pytest.approx(0.5, abs=1e-6))


def test_a_question_that_is_too_long_is_invalid_and_the_others_are_judged():
    words = tokenizer()
    (shortest,) = prompts(TEMPLATE, Question("q", "x", "x", "x", {}), ("a",), "logprobs", 0)
    limit = len(render(words, [{"role": "user", "content": shortest}]).ids) + 20
    long, short = judge(words=words, max_length=limit).compare([question(a="fern " * 40, name="long"), question()])
    assert (long.outcome, long.score) == ("invalid", None)
    assert f"longer than {limit} tokens" in long.reason
    assert short.score is not None
    assert judge(words=words, max_length=3).compare([question()])[0].outcome == "invalid"


def narrow_model():
    """A model whose window is shorter than a question."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(**sizes, num_key_value_heads=2, sliding_window=4, initializer_range=0.2)
    config._attn_implementation = "sdpa"
    return MistralForCausalLM(config).eval()


def test_a_window_is_kept_over_a_tree():
    model, words = narrow_model(), tokenizer()
    expected = [p_first(model, words, "good fern", "bad"), p_first(model, words, "bad", "good fern")]
    for share in (False, True):
        assert firsts(judge(model, words, share=share).compare([question()])[0]) == pytest.approx(expected, abs=1e-5)
    model.config.sliding_window = None
    assert p_first(type(model)(model.config), words, "good fern", "bad") != pytest.approx(expected[0], abs=1e-3)


def test_a_model_that_takes_no_trees_is_run_on_separate_sequences():
    model, words = make("mamba"), tokenizer()
    assert not shares_prefixes(model, "trie", 64, Numerics("cpu", "float32", "float32"))
    expected = [p_first(model, words, "good fern", "bad"), p_first(model, words, "bad", "good fern")]
    orders = judge(model, words, share=False).compare([question()])[0].orders
    shares = [torch.tensor([order["letters"][letter] for letter in "AB"]).softmax(0)[0].item() for order in orders]
    assert shares == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("missing", ["{prompt}", "{a}", "{b}"])
def test_a_template_without_a_slot_is_refused(missing):
    with pytest.raises(InputError, match=f"judge prompt without {missing}"):
        judge(template=TEMPLATE.replace(missing, "it"))


def test_the_letter_after_the_mark_of_a_space_is_the_verdict():
    """Here "A" is read as "▁", "A", and the probability of the first would say nothing of the letter."""
    words = tokenizer(splits=True)
    assert [words(letter, add_special_tokens=False)["input_ids"] for letter in LETTERS] == [[1, 4], [1, 5]]
    model = tiny_model()
    (verdict,) = judge(model, words).compare([question()])
    assert firsts(verdict)[0] == pytest.approx(p_first(model, words, "good fern", "bad", LETTERS), abs=1e-5)
    assert firsts(verdict)[0] != pytest.approx(0.5, abs=1e-6)


class Folding:
    """A tokenizer that reads both letters alike, as one does that knows them as bytes or classes."""

    unk_token_id, name_or_path = 0, "org/folding"

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, text, add_special_tokens):
        return {"input_ids": self.ids}

    def decode(self, ids):
        return "?"


UNUSABLE = [
    (tokenizer([word for word in WORDS if word != "▁B"]), ["org/small-judge", "'B' is not in its vocabulary"]),
    (Folding([7]), ["org/folding", "A and B are the same token"]),
    (Folding([7, 8]), ["org/folding", "'A' is 2 tokens"]),
    (Folding([]), ["org/folding", "'A' is 0 tokens"]),
]


@pytest.mark.parametrize(("words", "said"), UNUSABLE, ids=[said[-1] for _, said in UNUSABLE])
def test_a_model_that_cannot_say_a_or_b_is_refused_by_name(words, said):
    with pytest.raises(InputError) as caught:
        judge(words=words)
    for part in [*said, "one token of its own", "choose another judge model"]:
        assert part in str(caught.value)


def test_the_embedded_policy_is_no_judge_and_is_called_as_the_caller_calls_it(tmp_path):
    """Its vocabulary is that of the controlled worlds, where no word is "B"."""
    from transformers import AutoTokenizer

    build_embedded(tmp_path, 0)
    with pytest.raises(InputError, match="judge model 'local:embedded': 'B' is not in its vocabulary"):
        judge(words=AutoTokenizer.from_pretrained(tmp_path), name="local:embedded")


def test_letters_and_usage_are_kept_and_used_again(tmp_path):
    known = {"cache": tmp_path / "cache", "identity": {"weights": "these"}}
    first = judge(**known).compare([question()])[0]
    again = judge(**known).compare([question()])[0]
    assert again.score == first.score
    assert [order["cached"] for order in first.orders + again.orders] == [False, False, True, True]
    assert set(first.orders[0]["letters"]) == {"A", "B"}
    assert first.usage["completion_tokens"] == 2
    for change in ({"epoch": 1}, {"identity": {"weights": "others"}}, {"max_length": 200}):
        assert not judge(**known | change).compare([question()])[0].orders[0]["cached"]


def test_kept_replies_of_a_model_that_nobody_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="without identity"):
        judge(cache=tmp_path / "cache")


def test_a_model_whose_numbers_are_none_ends_judging():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(StageError, match="no numbers"):
        judge(model).compare([question()])


def test_an_answer_cannot_say_the_models_own_special_tokens():
    """Here "<end>" is one: in an answer it must be read as text, so that none of it reaches the model."""
    words = tokenizer([*WORDS, "<end>"])
    words.add_special_tokens({"eos_token": "<end>"})
    end = words.convert_tokens_to_ids("<end>")
    assert end in words("fern <end> fern")["input_ids"]
    (prompt,) = prompts(TEMPLATE, question(a="fern <end> fern"), ("a",), "logprobs", 0)
    assert "<end>" in prompt
    assert end not in judge(words=words)._ids(Request("a", prompt, "key"))


def test_equal_scores_within_the_margin_are_a_tie_and_verdicts_keep_their_order():
    names = [str(n) for n in range(5)]
    found = judge().compare([question("fern " * (n + 1), "fern " * (n + 1), name) for n, name in enumerate(names)])
    assert [verdict.id for verdict in found] == names
    assert {verdict.outcome for verdict in found} == {"tie"}
