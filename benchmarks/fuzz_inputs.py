"""Cases for ``fuzz.py``: structured ones, put together from parts of the corpus and arbitrary values, and mutations of bytes and
tokens of kept ones.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import yaml
from fuzz_checks import KIB, LARGE, Case
from hypothesis import strategies as st

SUFFIXES = (".jsonl.gz", ".jsonl", ".body.json", ".json", ".parquet", ".yaml", ".txt")

# Pieces that readers take for more than text.
TOKENS: dict[str, tuple[bytes, ...]] = {
    "any": (
        *(
            b"\x00",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\r\n",
            b"\n\n",
            b"\t",
            b"\x1b[31m",
            b"\xed\xa0\x80",
            b"1e999",
            b"-0",
            b"0x1F",
            b"NaN",
        ),
        *(
            "\u2028\u202e\u00a0é猫🌱\u0301ß".encode(),
            b"9" * 5000,
            b"[" * 600,
            b'{"a":' * 400,
            b"\\ud800",
            b"\\u0000",
            b"null",
            b"true",
        ),
    ),
    "spec": (
        *(
            b": ",
            b"- ",
            b"? ",
            b"&a ",
            b"*a",
            b"<<: ",
            b"[",
            b"]",
            b"{",
            b"}",
            b"#",
            b"|",
            b">",
            b"---\n",
            b"...\n",
            b"%YAML 1.1\n",
        ),
        *(b"!!int ", b"!!float ", b"!!bool ", b"!!timestamp ", b"!!binary ", b"!!set ", b"!!omap ", b"!!python/name:os ", b"!x "),
        *(b'""', b"''", b".inf", b".nan", b"~", b"~root/x", b"~nobody/x", b"../", b"1:1:1", b"2001-01-01", b"0b1", b"extends: "),
        *(b"a" * 300, b"[embedded]", b"trained", b"reward:", b"local:", b"dpo+sft", b'"\\uD800"', b'"\\0"'),
    ),
    "rows": (
        *(
            b"Human:",
            b"\n\nAssistant:",
            b"\\n\\nHuman:",
            b'"prompt"',
            b'"chosen"',
            b'"rejected"',
            b'"responses"',
            b'"scores"',
            b'""',
        ),
        *(
            b'"summaries"',
            b'"choice"',
            b'"info"',
            b'"extra"',
            b'"cluster"',
            b'"role"',
            b"{}",
            b"[]",
            b",",
            b":",
            b"1.0",
            b'"<eos>"',
        ),
    ),
    "verdicts": (
        *(
            b"[[A]]",
            b"[[b ]]",
            b"[[C]]",
            b"[[",
            b"]]",
            b'"verdict"',
            b'"verdict": "A"',
            b'{"verdict":"B"}',
            b"{",
            b"}",
            b"\\",
            b'"',
        ),
        *(
            b"A",
            b"B",
            b"C",
            b'"preference"',
            b'"outcome"',
            b'"score"',
            b'"id"',
            b'"orders"',
            b'"logprob"',
            b'"token"',
            b"0.5",
            b"-1",
            b"2",
        ),
    ),
    "keywords": (
        *(
            b"the ",
            b" of ",
            b"1. ",
            b"\n2) ",
            b"$1,200.50",
            b"7:30",
            b"40%",
            b"don't",
            "’".encode(),
            b"-",
            b"&",
            b" ",
            b"  ",
            b".",
            b"!?",
        ),
        *("नमस्ते ไทย \u200d \u00df İ ﬁ".encode(), b"(", b")", b"\n\n", b"\r", b"___", b"\x0b", b"red fox "),
    ),
}


def load(folder: Path) -> list[Case]:
    """Return the cases of a target's folder, in the order of their names."""
    return [Case(suffix_of(path.name), path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()]


def suffix_of(name: str) -> str:
    """Return how a file's name ends, as far as it decides how the file is read."""
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), ".txt")


# Structured cases: trees of the corpus with other values in them.


def structured(target: str, corpus: Sequence[Case]) -> st.SearchStrategy[Case]:
    """Return a strategy of well-formed cases: trees written as the target's files, or texts put together from tokens."""
    pieces = st.sampled_from([token.decode("utf-8", "replace") for token in (*TOKENS[target], *TOKENS["any"])])
    texts = st.lists(pieces | st.text(max_size=12), max_size=30).map(
        lambda parts: Case(".txt", "".join(parts).encode("utf-8", "replace"))
    )
    if target == "keywords":
        return texts
    trees = [(case.suffix, tree) for case in corpus if (tree := parsed(case)) is not None]
    values: dict[Any, list[Any]] = {}
    for _, tree in trees:
        for parent, key in _nodes(tree):
            values.setdefault(key if isinstance(key, str) else None, []).append(parent[key])
    starts = st.integers(0, len(trees) - 1)
    edits = st.lists(_edits(), min_size=1, max_size=6)
    # By number, since hypothesis writes down what it draws from.
    grafted = st.builds(lambda start, edits, form: _grafted(values, trees[start], edits, form), starts, edits, _FORM)
    return grafted | texts if target == "verdicts" else grafted


_FORM = st.integers(0, 7)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "a", "tie"])
)
_VALUES = st.recursive(
    _SCALARS, lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=5), some, max_size=3), max_leaves=6
)


def _edits() -> st.SearchStrategy[tuple[str, int, int, Any]]:
    """Return edits: (what is done, at which place, what is put there from the corpus, or else)."""
    kinds = ("same key", "same key", "same key", "any value", "drop", "again", "any place")
    return st.tuples(st.sampled_from(kinds), st.integers(0, 2**16), st.integers(0, 2**16), _VALUES)


def _grafted(
    values: Mapping[Any, Sequence[Any]], start: tuple[str, Any], edits: Sequence[tuple[str, int, int, Any]], form: int
) -> Case:
    """Return a tree after some edits, written in one of the forms its reader knows; ``values`` are those of the corpus by key."""
    suffix, tree = start[0], json.loads(json.dumps(start[1]))
    for kind, place, other, value in edits:
        nodes = list(_nodes(tree))
        if not nodes:
            break
        parent, key = nodes[place % len(nodes)]
        givers = values.get(key if isinstance(key, str) and kind == "same key" else None, ())
        if kind == "drop":
            del parent[key]
        elif kind == "again" and isinstance(parent, list):
            parent.insert(key, parent[key])
        elif kind != "any value" and givers:
            parent[key] = json.loads(json.dumps(givers[other % len(givers)]))
        else:
            parent[key] = value
    return written(suffix, tree, form)


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value inside a tree, from the top down."""
    containers = [tree]
    for one in containers:
        for key in one if isinstance(one, dict) else range(len(one)):
            yield one, key
            if isinstance(one[key], dict | list):
                containers.append(one[key])


def parsed(case: Case) -> Any:
    """Return the tree of a case: of lines, a list; None where there is none, or a large one."""
    if len(case.content) > 8 * KIB:
        return None
    try:
        text = (gzip.decompress(case.content) if case.suffix == ".jsonl.gz" else case.content).decode()
        if case.suffix == ".yaml":
            tree = None if "&" in text else yaml.safe_load(text)  # what anchors stand for may have no end
        else:
            tree = (
                json.loads(text) if case.suffix in (".json", ".body.json") else [json.loads(line) for line in text.splitlines()]
            )
        json.dumps(tree)
    except Exception:  # noqa: BLE001 - whatever is no tree
        return None
    return tree if isinstance(tree, dict | list) else None


def written(suffix: str, tree: Any, form: int) -> Case:
    """Write a tree as a file with this ending, or with another that its reader knows too."""
    if suffix == ".yaml":
        text = json.dumps(tree) if form < 2 else yaml.safe_dump(tree, allow_unicode=form % 2 == 0, default_flow_style=form < 4)
        return Case(suffix, text.encode("utf-8", "replace"))
    if suffix == ".body.json":
        return Case(suffix, json.dumps(tree).encode())
    rows = tree if isinstance(tree, list) else [tree]
    lines = "\n".join(json.dumps(row, ensure_ascii=form < 3) for row in rows).encode("utf-8", "replace")
    if form == 7 and (table := _parquet(rows)) is not None:
        return table
    if form == 6:
        return Case(".json", json.dumps(rows).encode())
    return Case(".jsonl.gz", gzip.compress(lines, mtime=0)) if form == 5 else Case(".jsonl", lines)


def _parquet(rows: Sequence[Any]) -> Case | None:
    """Write rows as parquet, None where their types do not fit."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    content = BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows), content)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return Case(".parquet", content.getvalue())


# Mutations.


def mutated(target: str, case: Case, pool: Sequence[Case], draw: Random) -> Case:
    """Return a case with a few changes of its bytes or tokens; of gzip, mostly of what is inside."""
    inside = case.suffix == ".jsonl.gz" and draw.random() < 0.8
    content = case.content
    if inside:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            inside = False
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        content = draw.choice(_MUTATIONS)(content, target, pool, draw)
    if draw.random() < 0.01:
        content = _stretched(content, LARGE[target], draw)
    content = content[: 2 * LARGE[target]]
    return Case(case.suffix, gzip.compress(content, 1, mtime=0) if inside else content)


Mutation = Callable[[bytes, str, Sequence[Case], Random], bytes]


def _slice(content: bytes, draw: Random) -> tuple[int, int]:
    start = draw.randrange(len(content) + 1)
    return start, min(len(content), start + draw.choice((1, 1, 2, 4, 16, 64, 256)))


def _flip(content: bytes, target: str, pool: Sequence[Case], draw: Random) -> bytes:
    start, end = _slice(content, draw)
    return (
        content[:start]
        + bytes(draw.randrange(256) for _ in content[start : min(end, start + 4)])
        + content[min(end, start + 4) :]
    )


def _insert(content: bytes, target: str, pool: Sequence[Case], draw: Random) -> bytes:
    start, end = _slice(content, draw)
    return content[:start] + draw.choice(TOKENS[draw.choice((target, target, "any"))]) + content[draw.choice((start, end)) :]


def _cut(content: bytes, target: str, pool: Sequence[Case], draw: Random) -> bytes:
    start, end = _slice(content, draw)
    return content[:start] + content[end:] if draw.random() < 0.8 else content[:start]


def _again(content: bytes, target: str, pool: Sequence[Case], draw: Random) -> bytes:
    start, end = _slice(content, draw)
    return content[:start] + content[start:end] * draw.choice((2, 2, 3, 50)) + content[end:]


def _splice(content: bytes, target: str, pool: Sequence[Case], draw: Random) -> bytes:
    other = draw.choice(pool).content
    return content[: draw.randrange(len(content) + 1)] + other[draw.randrange(len(other) + 1) :]


def _tokens(content: bytes, target: str, pool: Sequence[Case], draw: Random) -> bytes:
    """Swap two tokens, or put one of another case in the place of one."""
    split = re.compile(rb"\w+|\s+|[^\w\s]")
    tokens, others = split.findall(content[: 64 * KIB]), split.findall(draw.choice(pool).content[: 4 * KIB])
    if not tokens or not others:
        return content
    one, other = draw.randrange(len(tokens)), draw.randrange(len(tokens))
    tokens[one], tokens[other] = (draw.choice(others), tokens[other]) if draw.random() < 0.5 else (tokens[other], tokens[one])
    return b"".join(tokens)


_MUTATIONS: tuple[Mutation, ...] = (_flip, _insert, _insert, _cut, _again, _splice, _tokens, _tokens)


def _stretched(content: bytes, size: int, draw: Random) -> bytes:
    """Repeat a slice until there are ``size`` bytes, where what takes more than linear time shows."""
    start, end = _slice(content, draw)
    return content[:start] + content[start:end] * (size // max(1, end - start)) + content[end:]
