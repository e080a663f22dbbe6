"""The table of ``test_bad_input.py``: what somebody may give the command that it cannot use, and what has to be said of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        words: the command line.
        says: what stderr has to say, besides a rule and a remedy.
        files: what lies in the working directory before; None removes something of ``begin``.
        env: variables besides the usual ones.
        begin: "run": a finished run lies in ``run``; "nights": one in ``run``, another in ``ref``.
        torch: it cannot be refused before torch is imported; everything else is.
        leaves: what may be left in the working directory or the store, because it is whole and of use.
    """

    words: tuple[str, ...]
    says: tuple[str, ...]
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    begin: str = ""
    torch: bool = False
    leaves: tuple[str, ...] = ()


CASES: dict[str, Case] = {}
SPEC: dict[str, Any] = {
    "name": "tiny",
    "models": ["embedded"],
    "tasks": [{"name": "controlled_dialogue", "limit": {"train": 16, "eval": 4, "heldout": 8, "sft": 16}}],
    "methods": ["dpo"],
    "sft": {"steps": 2},
    "train": {"batch_size": 8, "max_steps": 1, "max_length": 128},
    "generate": {"max_new_tokens": 8},
}


def add(name: str, command: str, *says: str, **more: Any) -> None:
    """Add a case; ``command`` is split at spaces, '' stands for an empty word."""
    assert name not in CASES, name
    words = tuple("" if word == "''" else word for word in command.split())
    CASES[name] = Case(words, says, **more)


def written(**change: Any) -> bytes:
    return yaml.safe_dump({**SPEC, **change}, sort_keys=False).encode()


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# --- specs as files -----------------------------------------------------------------------------------------------------------


def file_of_spec(name: str, content: bytes, *says: str, **files: bytes) -> None:
    add(f"spec: {name}", "run --matrix s.yaml", "s.yaml", *says, files={"s.yaml": content, **files})


BOMB = b"a: &a [" + b",".join([b"x"] * 10) + b"]\n"
BOMB += b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(8))

file_of_spec("a tab", b"name: x\nmodels:\n\t- embedded\n", "line 3", "'\\t'", "indent with spaces")
file_of_spec("a list that is not closed", b"models: [embedded\ntasks: [dialogue]\n", "line 2", "a spec is YAML")
file_of_spec("two colons", b"name: x: y\n", "line 1, column 8", "mapping values are not allowed")
file_of_spec("an alias of nothing", b"models: *nope\n", "line 1", "undefined alias 'nope'")
file_of_spec("a key twice", b"name: x\nname: y\n", "line 2", "key 'name' again, first in line 1", "remove one of them")
file_of_spec("a tag that runs code", b"name: !!python/object/apply:os.system ['touch pwned']\n", "line 1", "os.system")
file_of_spec("two documents", b"name: x\n---\nname: y\n", "line 2", "another document")
file_of_spec("a list", b"- dpo\n- ipo\n", "holds a list", "a mapping of keys to values", "presets show quick")
file_of_spec("a word", b"quick\n", "a mapping of keys to values")
file_of_spec("empty", b"", "is empty", "a mapping of keys to values")
file_of_spec("comments only", b"# nothing\n", "is empty")
file_of_spec("a picture", b"\x89PNG\r\n\x1a\n\x00\x00", "cannot be read", "UTF-8")
file_of_spec("UTF-16", "name: x\n".encode("utf-16"), "cannot be read", "UTF-8")
file_of_spec("Latin-1", "name: café\n".encode("latin-1"), "cannot be read", "UTF-8")
file_of_spec("gzip", gzip.compress(b"name: x\n"), "cannot be read", "UTF-8")
file_of_spec("a NUL", b"name: a\x00b\n", "#x0000", "a spec is YAML")
file_of_spec("an alias bomb", BOMB, "more than 100000 values, aliases written out")
file_of_spec("an alias of itself", b"a: &a [*a]\n", "aliases written out")
file_of_spec("three thousand brackets", b"name: " + b"[" * 3000 + b"]" * 3000, "a spec is YAML")
file_of_spec("a number of 5000 digits", b"seeds: [" + b"9" * 5000 + b"]\n", "a spec is YAML")
file_of_spec("a list as a key", b"? [a, b]\n: c\n", "a spec is YAML")
file_of_spec("an escape that moves the cursor", b'name: "a\\x1b[2Jb"\n', "\\x1b", "U+001B")
file_of_spec("half a surrogate pair", b'name: "\\ud800"\n', "U+D800", "remove the character")
file_of_spec("extends itself", b"extends: s.yaml\n", "leads back to itself", "break the circle")
file_of_spec("extends in a circle", b"extends: t.yaml\n", "leads back to itself", **{"t.yaml": b"extends: s.yaml\n"})
file_of_spec("extends nothing", b"extends: quik\n", "line 1, extends", "'quik'", "did you mean 'quick'?")
file_of_spec("extends a list", b"extends: [quick]\n", "line 1, extends", "one preset's name or one file")
file_of_spec("extends a folder", b"extends: d\n", "line 1, extends", "is a folder", **{"d/x": b""})
add("spec: not there", "run --matrix quikc", "'quikc'", "neither a preset nor a file", "did you mean 'quick'?")
add("spec: a file beside it", "run --matrix s.yml", "'s.yml'", "did you mean the file 's.yaml'?", files={"s.yaml": written()})
add("spec: a folder", "run --matrix d", "'d' is a folder", "name the file", files={"d/x": b""})
add("plan: not there", "plan --matrix smal", "'smal'", "did you mean 'small'?")

# --- values of a spec ---------------------------------------------------------------------------------------------------------


def value(change: Mapping[str, Any], *says: str, **more: Any) -> None:
    name = f"value: {json.dumps(change)[:80]}"
    add(
        name,
        "run --matrix s.yaml --jobs 1",
        *says,
        files={"s.yaml": written(**change), "d/x": b"", **more.pop("files", {})},
        **more,
    )


def of_task(change: Mapping[str, Any], *says: str) -> None:
    value({"tasks": [{"name": "controlled_dialogue", **change}]}, "tasks[0]", *says)


value({"modles": ["embedded"]}, "unknown key 'modles'", "did you mean 'models'?")
value({f"k{i}": i for i in range(30)}, "30 faults", "unknown key 'k0'", "and 22 more")
value({"models": "embedded"}, "models: given 'embedded'", "it should be a list")
value({"models": []}, "models: given []", "at least 1 item")
value({"models": None}, "models: given null", "it should be a list")
value({"models": [3]}, "models[0]: given 3", "a mapping of keys to values")
value({"models": ["embedded", "embedded"]}, "'embedded' is listed twice", "remove one")
value({"models": [{"path": "embedded", "dtpe": "float32"}]}, "models[0].dtpe", "did you mean 'dtype'?")
value({"models": [{"path": "embedded", "dtype": "float16"}]}, "models[0].dtype: given 'float16'", "did you mean 'bfloat16'?")
value({"models": [{"path": "embedded", "revision": "main"}]}, "models[0]", "leave them out")
value({"models": ["./nowhere/model"]}, "'./nowhere/model' is not there", "check the path")
value({"models": ["./d"]}, "holds no config.json", "save_pretrained")
value({"models": ["someone/some-model"]}, "'someone/some-model'", "hub", "download it elsewhere")
value({"models": ["./" + "x" * 300]}, "models[0].label", "at most 120 visible characters")
value({"models": ["./d", "./nowhere"], "rewards": ["./no-reward"]}, "3 problems", "config.json", "'./nowhere'", "'./no-reward'")
value({"tasks": []}, "tasks: given []", "at least 1 item")
value({"tasks": ["controlled_dialog"]}, "unknown task 'controlled_dialog'", "did you mean 'controlled_dialogue'?")
value({"tasks": ["dialogue"]}, "task 'dialogue' has no data", "{name: dialogue, data: FILE_OR_HUB_ID}")
of_task({"data": "x.jsonl"}, "is given data 'x.jsonl'", "leave `data` out")
of_task({"limit": 16}, "limit: given 16", "a mapping of keys to values")
of_task({"limit": {"train": -1}}, "limit.train: given -1", "greater than or equal to 1")
of_task({"limit": {"train": 1.5}}, "limit.train: given 1.5", "a whole number")
of_task({"limit": {"train": True}}, "limit.train: given true", "a whole number")
of_task({"limit": {"trian": 1}}, "limit.trian", "did you mean 'train'?")
of_task({"max_dropped": 2}, "max_dropped: given 2", "less than or equal to 1")
of_task({"metrics": ["bleu"]}, "metrics[0]: given 'bleu'", "rouge_l, or evaluate:NAME")
of_task({"label": "a/b"}, "the label 'a/b'", "has no '/'")
value({"methods": {"dpo": 1}}, "methods: given {'dpo': 1}", "it should be a list")
value({"methods": ["dpoo"]}, "methods[0]", "'dpoo'", "did you mean 'dpo'?")
value({"methods": ["sft"]}, "'sft' listed as a method", "leave it out")
value({"methods": ["dpo", "dpo"]}, "'dpo' is listed twice")
value({"methods": [{"name": "dpo", "betta": 1}]}, "betta", "did you mean 'beta'?")
value({"methods": [{"name": "dpo", "beta": -1}]}, "beta = -1", "a finite number above 0")
value({"methods": [{"name": "dpo", "beta": "big"}]}, "beta = 'big'", "a finite number above 0")
value({"methods": [{"name": "dpo", "beta": float("nan")}]}, "beta = nan", "a finite number above 0")
value({"methods": ["dpo+sf"]}, "methods[0]", "unknown addition 'sf'", "did you mean 'sft'?")
value({"methods": ["orpo+sft"]}, "orpo with +sft", "leave +sft out")
value({"methods": [{"name": "dpo", "train": {"max_length": 3}}]}, "'max_length' for one method", "set it in the section train")
value({"methods": [{"name": "ipo", "label": "sft"}]}, "two rows of the tables would be called 'sft'", "another `label`")
value({"spo": True}, "spo: given true", "it should be a list")
value({"spo": ["yes please"]}, "item 0 is 'yes please'", "for example spo: [false, true]")
value({"spo": [{"gama": 1}]}, "spo[0].gama", "did you mean 'gamma'?")
value({"spo": [{"gamma": -1}]}, "spo[0].gamma: given -1", "greater than or equal to 0")
value({"spo": [{"degrees": 1}]}, "spo[0].degrees: given 1", "greater than or equal to 2")
value({"spo": [{"control": "random_removl"}]}, "given 'random_removl'", "did you mean 'random_removal'?")
value({"seeds": ["a"]}, "seeds[0]: given 'a'", "a whole number")
value({"seeds": [-1]}, "seeds[0]: given -1", "greater than or equal to 0")
value({"seeds": [0, 0]}, "'0' is listed twice")
value({"sft": {"step": 3}}, "sft.step", "did you mean 'steps'?")
value({"sft": {"steps": 2}, "tasks": [{"name": "controlled_dialogue", "limit": {"sft": 0}}]}, "limit.sft 0", "sft.steps to 0")
value({"train": None}, "train: given null", "a mapping of keys to values")
value({"train": {"batch_size": 0}}, "train.batch_size: given 0", "greater than or equal to 1")
value({"train": {"learning_rate": "fast"}}, "train.learning_rate: given 'fast'", "a number")
value({"train": {"learning_rat": 1e-4}}, "train.learning_rat", "did you mean 'learning_rate'?")
value({"train": {"packing": "tri"}}, "train.packing: given 'tri'", "did you mean 'trie'?")
value({"train": {"schedule": "cosin"}}, "train.schedule: given 'cosin'", "did you mean 'cosine'?")
value({"train": {"lora": {"rank": 0}}}, "train.lora.rank: given 0", "greater than or equal to 1")
value({"generate": {"temperature": -1}}, "generate.temperature: given -1", "greater than or equal to 0")
value({"generate": {"top_p": 1.5}}, "generate.top_p: given 1.5", "less than or equal to 1")
value({"generate": {"backend": "vlm"}}, "generate.backend: given 'vlm'", "did you mean 'vllm'?")
value({"rewards": ["./no-reward"]}, "'./no-reward' is not there", "check the path")
value({"rewards": "trained"}, "rewards: given 'trained'", "it should be a list")
value({"reward_dtype": "int8"}, "reward_dtype: given 'int8'", "known: bfloat16, float32")
value({"reward_training": {"epoch": 1}}, "reward_training.epoch", "did you mean 'epochs'?")
value({"judge": "gpt-4"}, "judge 'gpt-4'", "backend: openai")
value({"judge": {"backend": "opnai", "model": "x"}}, "judge.backend: given 'opnai'", "did you mean 'openai'?")
value({"judge": {"backend": "openai"}}, "judge", "needs a model")
value({"judge": {"backend": "openai", "model": "x", "api_key": "sk-0"}}, "judge.api_key", "did you mean 'api_key_env'?")
value({"judge": {"backend": "openai", "model": "x", "max_cost": 5.0}}, "max_cost without price_input", "set price_input")
value({"judge": {"backend": "openai", "model": "x", "base_url": "localhost:8"}}, "judge.base_url", "http://", "for example")
value(
    {"judge": {"backend": "openai", "model": "x", "base_url": "http://me:pw@h/v1"}}, "holds a user or a password", "api_key_env"
)
value({"judge": {"backend": "openai", "model": "x-2024-01-01"}}, "no key", "OPENAI_API_KEY is not set", "export OPENAI_API_KEY")
value({"judge": {"backend": "gold", "max_calls": 1}}, "max_calls for the judge gold", "leave them out")
value({"judge": "local:./nope"}, "'./nope' is not there", "check the path")
value({"data_axes": {"fractoin": [1.0]}}, "data_axes.fractoin", "did you mean 'fraction'?")
value({"data_axes": {"fraction": [0]}}, "data_axes.fraction[0]: given 0", "greater than 0")
value({"data_axes": {"regime": ["onlin"]}}, "given 'onlin'", "did you mean 'online'?")
value({"data_axes": {"label_flip": [2]}}, "data_axes.label_flip[0]: given 2", "less than or equal to 1")
value({"name": "a/b"}, "name: given 'a/b'", "letters, digits, dots, dashes, underscores")
value({"name": "x" * 300}, "name: given 'xxx", "at most 100 characters")

# --- data ---------------------------------------------------------------------------------------------------------------------

GOOD = [{"prompt": f"question {i} ?", "chosen": "yes it is", "rejected": "no"} for i in range(40)]
ROWS = jsonl(*GOOD)
TABLE = BytesIO()
pq.write_table(pa.table({"prompt": ["a"] * 3, "chosen": ["b"] * 3, "rejected": ["c"] * 3}), TABLE)


def data(name: str, file: str, content: bytes | None, *says: str, **more: Any) -> None:
    files = {"s.yaml": written(tasks=[{"name": "dialogue", "data": file}])} | ({file: content} if content is not None else {})
    add(f"data: {name}", "run --matrix s.yaml --jobs 1", *says, files={**files, **more.pop("files", {})}, **more)


data("missing", "pairs.jsonl", None, "'pairs.jsonl' is not there", "did you mean 'pears.jsonl'?", files={"pears.jsonl": ROWS})
data("a folder that is missing", "no/pairs.jsonl", None, "no folder 'no'", "check the path")
data("a folder", "d", None, "is a folder", "name one of its files: x.jsonl", files={"d/x.jsonl": ROWS})
data("a hub id, offline", "someone/nothing", None, "'someone/nothing'", "HF_HUB_OFFLINE", "check the name")
data("another ending", "pairs.txt", ROWS, "pairs.txt", "give it the right ending (.jsonl")
data("a spreadsheet", "pairs.csv", b"prompt,chosen\n", "pairs.csv", "convert it")
data("empty", "pairs.jsonl", b"", "pairs.jsonl' is empty", "at least one row", "downloaded completely")
data("blank lines", "pairs.jsonl", b"\n\n", "pairs.jsonl' is empty")
data("not JSON", "pairs.jsonl", ROWS + b"{oops\n", "pairs.jsonl, row 41", "not JSON", "correct or remove this row")
data("cut in the last row", "pairs.jsonl", ROWS[:-10], "row 40", "not JSON")
data("not an object", "pairs.jsonl", b"[1]\n", "row 1", "it is a list", "a JSON object with named fields")
data("a missing field", "pairs.jsonl", jsonl(GOOD[0], {"prompt": "a", "chosen": "b"}), "row 2, field 'rejected'", "missing")
data("a number for a text", "pairs.jsonl", jsonl({**GOOD[0], "chosen": 3}), "row 1, field 'chosen'", "it is a number", "is text")
data("null for a text", "pairs.jsonl", jsonl({**GOOD[0], "chosen": None}), "row 1, field 'chosen'", "it is null")
data(
    "an unknown role",
    "pairs.jsonl",
    jsonl({**GOOD[0], "prompt": [{"role": "robot", "content": "x"}]}),
    "'robot'",
    "system, user, assistant",
)
data("Latin-1", "pairs.jsonl", '{"prompt":"café"}\n'.encode("latin-1"), "row 1", "not UTF-8", "convert the file")
data("UTF-16", "pairs.jsonl", ROWS.decode().encode("utf-16"), "row 1", "not UTF-8")
data("zeros", "pairs.jsonl", b"\0" * 100, "row 1", "not JSON")
data("cut gzip", "pairs.jsonl.gz", gzip.compress(ROWS)[:-20], "cannot be unpacked", "download it again")
data("no gzip", "pairs.jsonl.gz", ROWS, "cannot be unpacked", "complete gzip")
data("cut parquet", "pairs.parquet", TABLE.getvalue()[:-30], "is not parquet", "write or download it again")
data("empty parquet", "pairs.parquet", b"", "is not parquet")
data("a JSON object", "pairs.json", b"{}", "it is an object", "one list of objects", "name the file .jsonl")
data("a broken JSON list", "pairs.json", b"[{", "pairs.json", "not JSON")
data("one row only", "pairs.jsonl", jsonl(GOOD[0]), "has no", "a task needs train and eval rows", "give more data")
add(
    "data: a judge that knows no reward of it", "run --matrix s.yaml", "judge: judge gold with dialogue", "only controlled tasks",
    files={"s.yaml": written(tasks=[{"name": "dialogue", "data": "pairs.jsonl"}], judge="gold"), "pairs.jsonl": ROWS},
)  # fmt: skip
# Whether rows are left is only known of their tokens: the tokenizer and the counted rows stay, and are right.
data(
    "too many dropped", "pairs.jsonl", jsonl(*({**row, "rejected": row["chosen"]} for row in GOOD)), "identical", "max_dropped = 0.02",
    torch=True, leaves=("store",),
)  # fmt: skip
