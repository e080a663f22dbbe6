"""The table of ``test_bad_input.py``, second part: arguments, places, runs, references, verdicts, plugins, environments."""

from __future__ import annotations

import gzip
from typing import Any

from bad_inputs import add, jsonl, written

S = {"s.yaml": written()}
F = {"f": b"a file"}
D = {"d/x": b""}

# --- names and values of every command ----------------------------------------------------------------------------------------

add("words: a command", "rnu", "unknown command 'rnu'", "did you mean 'run'?")
add("words: a command of judge", "judge rnu", "unknown command 'rnu' in `spo-bench judge`", "did you mean 'run'?")
add("words: a command of methods", "methods lst", "unknown command 'lst'", "did you mean 'list'?")
add("words: a command of presets", "presets shwo", "unknown command 'shwo'", "did you mean 'show'?")
add("words: an option before the command", "--debgu run", "unknown option '--debgu'", "did you mean '--debug'?")
add("words: a short option", "run -x", "unknown option '-x' of `spo-bench run`", "spo-bench run --help")
add("words: an option that takes nothing", "run --offline=3", "--offline", "spo-bench")
add("words: control characters", "run \x1b]0;owned\x07", "\\x1b]0;owned\\x07", "it takes nothing")
add("words: half a character", "run \udcff", "\\udcff", "it takes nothing")
for command in ("run", "plan"):
    add(f"{command}: an option", f"{command} --metod dpo", "unknown option '--metod'", "did you mean '--method'?")
    add(f"{command}: a word too many", f"{command} quick", "'quick'", "did you mean --matrix quick?")
    add(f"{command}: no value", f"{command} --store", "--store", "has it after it")
    add(f"{command}: a method", f"{command} --matrix quick --method dppo", "unknown method 'dppo'", "did you mean 'dpo'?")
    add(f"{command}: a task", f"{command} --task controled_dialogue", "unknown task", "did you mean 'controlled_dialogue'?")
    add(f"{command}: a model", f"{command} --model embeded", "unknown model 'embeded'", "did you mean 'embedded'?")
    add(f"{command}: a seed that is not there", f"{command} --seed 77", "unknown seed '77'", "known: 0, 1")
    add(
        f"{command}: a seed that is no number",
        f"{command} --seed one",
        "--seed 'one'",
        "a valid integer",
        f"spo-bench {command} --help",
    )
    add(f"{command}: a device", f"{command} --device cpuu", "device 'cpuu'", "did you mean 'cpu'?")
    add(f"{command}: a GPU without a number", f"{command} --device cuda:x", "device 'cuda:x'", "did you mean 'cuda:0'?")
    add(f"{command}: a folder of tasks", f"{command} --tasks nowhere", "task folder 'nowhere' is not there", "check the path")
add("run: an engine", "run --engine locl", "unknown engine 'locl'", "did you mean 'local'?")
add("run: no job", "run --jobs 0", "--jobs 0", "give --jobs 1 or more")
add("run: jobs in words", "run --jobs atuo", "--jobs atuo", "--jobs auto")
add("run: time in words", "run --checkpoint soon", "--checkpoint 'soon'", "a valid number")
add("run: memory below zero", "run --memory -1", "--memory '-1'", "greater than or equal to 0")
add("run: memory that is no number", "run --memory lots", "--memory 'lots'", "a valid number")
add("run: memory for one job", "run --jobs 1 --memory 2", "--memory 2 with one stage", "leave --memory out")
add("table: no run", "table", "without RUN", "spo-bench table results/quick")
add("table: two runs", "table a b", "with 'b'", "it takes RUN")
add("table: a name", "table run --name mian", "unknown table 'mian'", "did you mean 'main'?", begin="run")
add("table: a format", "table run --format latex", "unknown format 'latex'", "did you mean 'tex'?", begin="run")
add("table: bold", "table run --bold undominatd", "'undominatd'", "did you mean 'undominated'?", begin="run")
add("table: bold of another table", "table run --name cost --bold undominated", "'cost'", "leave --bold out", begin="run")
add("compare: one run", "compare run", "without RUN_B", "spo-bench compare results/monday", begin="nights")
add("compare: a metric", "compare run ref --metric true_rewrd", "'true_rewrd'", "did you mean 'true_reward'?", begin="nights")
add("compare: a format", "compare run ref --format mdd", "unknown format 'mdd'", "did you mean 'md'?", begin="nights")
add("compare: two formats", "compare run ref --json --format md", "--json with --format md", "leave one out", begin="nights")
add("methods: a name", "methods show simpoo", "'simpoo'", "did you mean 'simpo'?")
add("methods: an addition", "methods show +stf", "'+stf'", "did you mean '+sft'?")
add("methods: no name", "methods show", "without NAME", "spo-bench methods show +sft")
add("methods: two forms", "methods list --json --markdown", "--json with --markdown", "leave one out")
add("tasks: a name", "tasks show dialog", "unknown task 'dialog'", "did you mean 'dialogue'?")
add("tasks: a folder", "tasks list --tasks nowhere", "'nowhere' is not there", "check the path")
add("presets: a name", "presets show papr", "unknown preset 'papr'", "did you mean 'paper'?")
add("presets: a path", "presets show ../load", "unknown preset '../load'", "known: ablation")
add("init: no name", "init", "without DIR", "spo-bench init my-study")
add("init: a full directory", "init d", "'d' is there and not empty", "give another name", files=D)
add("init: a file", "init f", "'f' is there", "give another name", files=F)
add("init: below a file", "init f/study", "'f/study'", "a part of it is a file", files=F)
add("init: a name too long", f"init {'x' * 300}", "File name too long", "give a shorter one")
add("doctor: an option", "doctor --jsn", "unknown option '--jsn'", "did you mean '--json'?")
add("doctor: an endpoint without a model", "doctor --judge-url http://x", "http://x", "add --judge-model")
add("doctor: a folder of tasks", "doctor --tasks nowhere", "'nowhere' is not there", "check the path")

# --- places that are written to -----------------------------------------------------------------------------------------------

add("store: a file", "run --matrix s.yaml --store f", "--store", "is a file", "give another place", files=S | F)
add("store: below a file", "run --matrix s.yaml --store f/store", "--store", "f' is a file", files=S | F)
add("store: a file in the environment", "run --matrix s.yaml", "--store", "is a file", files=S | F, env={"SPO_BENCH_STORE": "f"})
add("store: where nothing can be made", "run --matrix s.yaml --store /proc/x", "'/proc/x'", "give another place", files=S)
add("store: a name too long", f"run --matrix s.yaml --store {'x' * 300}", "File name too long", "give a shorter one", files=S)
add("out: a file", "run --matrix s.yaml --out f", "--out 'f'", "is a file", "give another place", files=S | F)
add("out: below a device", "run --matrix s.yaml --out /dev/null/x", "'/dev/null' is a file", "give another place", files=S)
add("out: where nothing can be made", "run --matrix s.yaml --out /proc/x", "'/proc/x'", "give another place", files=S)
add(
    "out: a file where results lie",
    "run --matrix s.yaml",
    "results' is a file",
    "--out is a directory",
    files=S | {"results": b""},
)

add("store: a command", "store lss", "unknown command 'lss' in `spo-bench store`", "did you mean 'ls'?")
for command in ("ls", "verify", "gc"):
    add(f"store {command}: nothing there", f"store {command}", "there is no store at", "give the --store that the run had")
    add(f"store {command}: a file", f"store {command} --store f", "there is no store at", "SPO_BENCH_STORE", files=F)
add(
    "store ls: a kind",
    "store ls --store d --kind trian",
    "unknown kind 'trian'",
    "did you mean 'train'?",
    files={"d/train/x": b""},
)
add("store gc: a run to keep", "store gc --store d --keep nowhere", "--keep 'nowhere' is no run", "check the path", files=D)

# --- runs that are none, or not whole -----------------------------------------------------------------------------------------

CELL = "run/cells/embedded-controlled_dialogue-dpo-s0"


def of_run(name: str, files: dict[str, bytes | None], *says: str, commands: tuple[str, ...] = ("report", "table")) -> None:
    for command in commands:
        add(f"{command}: {name}", f"{command} run", *says, files=files, begin="run")


for command in ("report", "table"):
    add(f"{command}: nothing there", f"{command} nowhere", "'nowhere' holds no finished run", "spo-bench run --out")
    add(f"{command}: a file", f"{command} f", "'f' holds no finished run", files=F)
    add(f"{command}: another directory", f"{command} d", "'d' holds no finished run", files=D)
of_run("without its cells", {"run/cells.jsonl": None}, "'run' holds no finished run", "finish an interrupted run first")
of_run("half a run.json", {"run/run.json": b'{"schema_version": 1, "spec"'}, "run.json", "delimiter")
of_run("an empty run.json", {"run/run.json": b""}, "run.json", "Expecting value")
of_run("a list for run.json", {"run/run.json": b"[]"}, "run/run.json", "object", "run the same command again")
of_run("bytes for run.json", {"run/run.json": b"\xff\xfe\x00"}, "run.json", "utf-8")
of_run("half a line of cells", {"run/cells.jsonl": b'{"id": "a", "mod'}, "run/cells.jsonl", "Unterminated", "again")
of_run("no line of cells", {"run/cells.jsonl": b""}, "run/cells.jsonl is empty", "a run has cells")
of_run("a cell without a name", {"run/cells.jsonl": b'{"model":"x"}\n'}, "run/cells.jsonl, line 1: has no id")
of_run("a list for a cell", {"run/cells.jsonl": b"[1]\n"}, "run/cells.jsonl, line 1: has no id")
of_run("a cell that is gone", {CELL: None}, "dpo-s0 is listed as done, but its folder", "it makes what is missing")
of_run("half a scores.json", {f"{CELL}/scores.json": b'{"metr'}, "dpo-s0/scores.json", "delete this cell's folder")
of_run("a list for scores.json", {f"{CELL}/scores.json": b"[]"}, "dpo-s0/scores.json", "it holds no object, but a list")
of_run(
    "a text for a score",
    {f"{CELL}/scores.json": b'{"metrics":{"x":{"ids":["a"],"values":["big"]}}}'},
    "'big'",
    "a number or null",
)
of_run("a score without values", {f"{CELL}/scores.json": b'{"metrics":{"x":{"ids":["a"]}}}'}, "dpo-s0/scores.json", "'values'")
of_run("fewer scores than prompts", {f"{CELL}/scores.json": b'{"metrics":{"x":{"ids":["a"],"values":[]}}}'}, "1 ids and 0 values")
for night in ("run", "ref"):
    add(
        f"compare: half a {night}",
        "compare run ref",
        night,
        "run.json",
        "Expecting",
        files={f"{night}/run.json": b"{"},
        begin="nights",
    )
add("compare: nothing there", "compare run nowhere", "nowhere has no run.json", "spo-bench run --out", begin="nights")
add("compare: half a line of cells", "compare run ref", "ref/cells.jsonl", files={"ref/cells.jsonl": b'{"id'}, begin="nights")

# --- the gate -----------------------------------------------------------------------------------------------------------------


def gate(name: str, options: str, *says: str, **files: bytes | None) -> None:
    add(f"gate: {name}", f"gate run {options}".strip(), *says, files=files, begin="nights")


def margins(name: str, text: str, *says: str) -> None:
    gate(f"gate.yaml, {name}", "--reference ref", "ref/gate.yaml", *says, **{"ref/gate.yaml": text.encode()})


METRIC = "schema_version: 1\nmetrics:\n  true_reward: {better: higher, retraining: 0.1, evaluation: 0.1}\n"
add("gate: no run", "gate nowhere --reference ref", "'nowhere' holds no run", "spo-bench run --out", begin="nights")
gate("a file for the reference", "--reference f", "'f' is a file", "a reference is a directory", **F)
gate("half a run.json", "--reference ref", "ref", "run.json", "Expecting", **{"ref/run.json": b"{"})
gate("half a line of cells", "--reference ref", "run/cells.jsonl", **{"run/cells.jsonl": b'{"id": "m'})
gate("half a scores.json", "--reference ref", "m0-s0/scores.json", **{"run/cells/m0-s0/scores.json": b'{"id": "m'})
gate("half a provenance", "--reference ref", "m0-s0/provenance.json", **{"run/cells/m0-s0/provenance.json": b'{"id": "m'})
gate("a list for spec.json", "--reference ref", "m0-s0/spec.json", "no object", **{"run/cells/m0-s0/spec.json": b"[]"})
margins("a key", METRIC.replace("metrics", "metrcs"), "line 2", "'metrcs'", "did you mean 'metrics'?")
margins("a metric", METRIC.replace("reward", "rewrd"), "'true_rewrd' fits nothing", "did you mean 'true_reward'?")
margins("a direction", METRIC.replace("higher", "lower"), "'true_reward' with better: lower", "correct the direction")
margins("a word for a direction", METRIC.replace("higher", "highr"), "given 'highr'", "did you mean 'higher'?")
margins("a margin", METRIC.replace("0.1", "-1"), "given -1", "greater than 0")
margins("not YAML", "metrics: [\n", "line 2", "gate.yaml is YAML")
margins("empty", "", "is empty", "docs/nightly.md")
gate("accept without a reason", "--reference new --accept", "--accept without --why", "add --why TEXT")
gate("a reason without accept", "--reference ref --why x", "--why or --who without --accept", "add --accept")
gate("accept and judge", "--reference new --accept --why x --junit a.xml", "--junit", "gate first, then accept")
gate(
    "accept onto itself", "--reference run --accept --why x --who me", "'run' is a run's own directory", "give another directory"
)
gate("accept onto a run", "--reference ref --accept --why x --who me", "'ref' is a run's own directory", "results/reference")
gate("accept onto a file", "--reference f --accept --why x --who me", "'f' is a file", **F)
gate("accept below a file", "--reference f/ref --accept --why x --who me", "f/", "a part of it is a file", **F)
gate("JUnit into the reference", "--reference ref --junit ref/x.xml", "lies in the reference", "give another place")
gate("JUnit onto a directory", "--reference ref --junit d", "--junit 'd' is a directory", "name a file in it", **D)
gate("JUnit below a file", "--reference ref --junit f/x.xml", "f' is a file", **F)
gate("a summary where nothing can be made", "--reference ref --summary /proc/x.md", "--summary", "'/proc'", "give another place")

# --- judges -------------------------------------------------------------------------------------------------------------------

PAIRS = [{"id": f"p{i}", "prompt": "q", "a": "x", "b": "y", "label": "a"} for i in range(2)]
P = {"p.jsonl": jsonl(*PAIRS)}
KEY = {"OPENAI_API_KEY": "k" * 20}


def judge(name: str, options: str, *says: str, command: str = "run", **more: Any) -> None:
    add(f"judge {command}: {name}", f"judge {command} p.jsonl {options}".strip(), *says, files=P | more.pop("files", {}), **more)


def pairs(name: str, content: bytes, *says: str, command: str = "run") -> None:
    judge(name, "--judge m", "p.jsonl", *says, command=command, files={"p.jsonl": content}, env=KEY)


add("judge run: no pairs", "judge run", "without PAIRS.jsonl", "spo-bench judge run pairs.jsonl")
add("judge run: pairs that are not there", "judge run q.jsonl --judge m", "q.jsonl: No such file", "check its name")
add("judge run: a directory of pairs", "judge run d --judge m", "d is a directory", "give a file in it", files=D)
add("judge audit: pairs that are not there", "judge audit q.jsonl --judge m", "q.jsonl: No such file", "check its name")
pairs("empty", b"", "is empty", "at least one row")
pairs("not JSON", b"{", "line 1: not JSON", "a row is one line of JSON")
pairs("not UTF-8", b"\xff\xfe\x00", "not UTF-8", "JSON in UTF-8")
pairs("cut gzip", gzip.compress(P["p.jsonl"])[:-9], "broken gzip", "make or fetch it again")
pairs("without an answer", b'{"id":1,"prompt":"q","b":"x"}\n', "row 1: no field 'a'", "a row has id, prompt")
pairs("a number for an answer", b'{"id":1,"prompt":"q","a":3,"b":"x"}\n', "row 1: a is 3, not a text")
pairs("an id twice", jsonl(*PAIRS, *PAIRS), "row 3: id 'p0' again", "rename one of the two")
pairs("no label", b'{"id":1,"prompt":"q","a":"z","b":"x"}\n', "no label", "a, b or tie", command="audit")
pairs("another label", b'{"id":1,"prompt":"q","a":"z","b":"x","label":"c"}\n', 'label "c"', "a, b or tie", command="audit")
pairs("a faulty preference", b'{"prompt":"q","chosen":1,"rejected":"x"}\n', "row 1, field 'chosen'", "is text", command="audit")
pairs(
    "no preference", b'{"prompt":"q","chosen":"x","rejected":"x"}\n', "no usable preference", "give other data", command="audit"
)
for command in ("run", "audit"):
    judge("nobody", "", "without --judge", "local:MODEL", command=command)
    judge("no key", "--judge m", "OPENAI_API_KEY is not set", "export OPENAI_API_KEY", command=command)
judge("no name", "--judge openai:", "'openai:' names no model", "name the model", env=KEY)
judge("an empty name", "--judge ''", "'' names no model", "name the model", env=KEY)
judge(
    "a key of two lines",
    "--judge m",
    "no request header can carry",
    "set OPENAI_API_KEY again",
    env={"OPENAI_API_KEY": "s\u00e9cret\nx"},
)
judge("an address without a scheme", "--judge m --base-url localhost:8", "base_url is no address", "http:// or https://")
judge("an address with a key", "--judge m --base-url http://h/v1?key=sk-0", "holds a query", "from the environment only")
judge(
    "an address with a password", "--judge m --base-url http://u:pw@h/v1", "a user or a password", "leave it out of the address"
)
judge("nonsense for an address in the environment", "--judge m", "base_url is no address", env={"OPENAI_BASE_URL": "nonsense"})
judge("the known reward", "--judge gold", "--judge gold", "name a model that reads both answers")
judge("a reward model", "--judge reward:x", "--judge reward:x", "name a model that reads both answers")
judge("a directory", "--judge d", "--judge d", "give --judge local:d", files=D)
judge("a directory that is not there", "--judge local:./nope", "'./nope' is not there", "check the path")
judge("a directory without a model", "--judge local:./d", "holds no config.json", "save_pretrained", files=D)
judge(
    "prices of a local one", "--judge local:./d --max-calls 3", "--max-calls for the judge local:./d", "leave them out", files=D
)
judge("a form", "--judge m --verdict jsn", "unknown verdict 'jsn'", "did you mean 'json'?", env=KEY)
judge("orders", "--judge m --orders bth", "'bth'", "did you mean 'both'?", env=KEY)
judge("a task", "--judge m --task dialoge", "unknown task 'dialoge'", "did you mean 'dialogue'?", env=KEY)
judge("a prompt that is not there", "--judge m --template t.txt", "--template 't.txt'", "check the path", env=KEY)
judge("a prompt without slots", "--judge m --template t.txt", "without {prompt}, {a}, {b}", files={"t.txt": b"Who?"}, env=KEY)
judge("a limit without prices", "--judge m --max-cost 5", "max_cost 5", "set price_input", env=KEY)
judge("a limit below zero", "--judge m --max-cost -5", "--max-cost '-5'", "greater than or equal to 0")
judge("a share above one", "--judge m --max-invalid 7", "--max-invalid '7'", "less than or equal to 1")
judge("tokens in words", "--judge m --max-tokens many", "--max-tokens 'many'", "a valid integer")
judge("a file for its results", "--judge m --out f", "--out 'f'", "is a file", "give another place", files=F, env=KEY)
judge("a file for the store", "--judge m --store f", "--store", "f' is a file", files=F, env=KEY)
judge(
    "a directory for a file",
    "--judge m --out d",
    "--out 'd' is a directory",
    "name a file in it",
    command="audit",
    files=D,
    env=KEY,
)
judge("no pair", "--judge m --limit 0", "--limit '0'", "greater than or equal to 1", command="audit")
SERVED = "--judge m --base-url http://127.0.0.1:9/v1 --retries 0"
judge(
    "nobody answers",
    SERVED,
    "no answer from the judge endpoint http://127.0.0.1:9/v1",
    "start it",
    leaves=("store/judge.sqlite",),
)
judge("a directory for replies", f"{SERVED} --cache d", "judge cache d", "name another place", files=D)
judge("another file for replies", f"{SERVED} --cache f", "judge cache f: file is not a database", "name another place", files=F)


def verdicts(name: str, content: bytes, *says: str, command: str = "stats") -> None:
    add(f"judge {command}: {name}", f"judge {command} v", *says, files={"v": content})


OURS = '{"id":1,"outcome":"%s","score":%s,"length_a":%s,"length_b":2}\n'
add("judge stats: no file", "judge stats", "without FILE", "spo-bench judge stats")
add("judge stats: not there", "judge stats v", "v: No such file", "check its name")
add("judge stats: a directory without any", "judge stats d", "d/verdicts.jsonl: No such file", files=D)
verdicts("pairs", P["p.jsonl"], "v holds pairs without verdicts", "judge them first: spo-bench judge run v")
verdicts("something else", b'{"x":1}\n', "v, row 1 has fields x", "AlpacaEval")
verdicts("an outcome", (OURS % ("c", 1, 1)).encode(), 'row 1: outcome is "c"', "write one of a, b, tie, invalid")
verdicts("a score", (OURS % ("a", 7, 1)).encode(), "row 1: score is 7", "a number from 0 to 1")
verdicts("a length without end", (OURS % ("a", 1, "1e400")).encode(), "row 1: length_a is Infinity", "a whole number")
verdicts("a number of 5000 digits", (OURS % ("a", 1, "9" * 5000)).encode(), "v, line 1: not JSON")
verdicts("a preference", b'[{"output_1":"a","output_2":"b","preference":"x"}]', 'row 1: preference is "x"', "from 1 to 2")
verdicts("brackets without end", b"[" * 100_000, "v: not JSON", "one JSON list")
verdicts("pairs to read again", P["p.jsonl"], "row 1: no replies", "judge run", command="reparse")
add("judge reparse: not there", "judge reparse v", "v: No such file", "check its name")

# --- plugins ------------------------------------------------------------------------------------------------------------------

TASK = """from spo_bench.task import Row, Task
class Mine(Task):
    name, needs_data, controlled = "mine", False, True
    def load(self, split, limit, seed): {load}
    def true_reward(self, row, answer): return 1.0
"""
ROW = "Row(id='a', prompt=(dict(role='user', content='x'),), chosen='b', rejected='c')"


def plugin(name: str, code: str | bytes, *says: str) -> None:
    code = code if isinstance(code, bytes) else code.encode()
    files = {"s.yaml": written(tasks=["mine"]), "t/mine.py": code}
    add(f"plugin: {name}", "run --matrix s.yaml --tasks t --jobs 1", *says, files=files)


def validated(name: str, load: str, *says: str) -> None:
    add(f"tasks validate: {name}", "tasks validate t", "mine: ", *says, files={"t/mine.py": TASK.format(load=load).encode()})


plugin("an import", "import nosuchmodule\n", "t/mine.py", "line 1", "No module named 'nosuchmodule'", "tasks validate PATH")
plugin("its syntax", "def (:\n", "t/mine.py", "line 1", "SyntaxError")
plugin("it leaves", "raise SystemExit(0)\n", "t/mine.py", "line 1", "SystemExit")
plugin("bytes", b"\x00\xff", "t/mine.py could not be loaded")
plugin("no name", "from spo_bench.task import Task\nclass T(Task): pass\n", "no subclass of spo_bench.task.Task with a name")
plugin("a name with a space", TASK.replace('"mine"', '"My Task"'), "its name is 'My Task'", "lower-case letters")
plugin(
    "a name that is taken",
    TASK.replace('"mine"', '"dialogue"'),
    "two tasks are named 'dialogue'",
    "tasks/dialogue.py",
    "t/mine.py",
)
plugin(
    "it raises",
    TASK.format(load="raise KeyError('x')"),
    "task 'mine', split sft: load() failed",
    "t/mine.py",
    "line 4",
    "KeyError",
)
plugin("it gives nothing", TASK.format(load="return []"), "task 'mine' has no train rows", "give more data")
plugin("it gives no rows", TASK.format(load="return ['a']"), "task 'mine', split sft", "no Row", "tasks validate PATH")
plugin(
    "its identity",
    TASK.format(load="return []") + "    def identity(self): return {1: object()}\n",
    "identity() of task 'mine'",
    "t/mine.py",
)
plugin(
    "its identity raises",
    TASK.format(load="return []") + "    def identity(self): raise KeyError('q')\n",
    "t/mine.py:6 failed: KeyError: 'q'",
)
add("plugin: no folder", "tasks validate nowhere", "'nowhere' is not a folder", "give the folder that holds the plugin")
add("plugin: a folder without any", "tasks validate d", "no Task subclass with a name was found", files=D)
add("plugin: another file", "plan --matrix s.yaml --tasks f", "task folder 'f' is not there", "(*.py)", files=S | F)
validated("it raises", "raise KeyError('x')", "t/mine.py", "line 4", "KeyError")
validated("it gives nothing", "return []", "split train has no rows")
validated("it gives no rows", "return ['a']", "split sft gives ['a']", "a list of Row")
validated("an id twice", f"return [{ROW}] * 2", "repeats a row id", "make ids from the rows' content")
validated(
    "other rows every time",
    f"import random; row = {ROW}; object.__setattr__(row, 'id', str(random.random())); return [row]",
    "gave other rows the second time",
)
validated("one prompt in two splits", f"return [{ROW}]", "1 prompts are in train and in eval", "split by prompt")

# --- environments -------------------------------------------------------------------------------------------------------------

add(
    "environment: a store that is no place",
    "run --matrix s.yaml",
    "/dev/null",
    "is a file",
    files=S,
    env={"SPO_BENCH_STORE": "/dev/null"},
)
add(
    "environment: no colours, no terminal, no width",
    "rnu",
    "did you mean 'run'?",
    env={"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "1"},
)
add(
    "environment: another language",
    "run --matrix quikc",
    "did you mean 'quick'?",
    env={"LANG": "xx_YY.nonsense", "LC_ALL": "xx_YY"},
)
add("environment: nothing at home", "run --matrix s.yaml --model embeded", "did you mean", files=S, env={"HOME": "/nonexistent"})
