"""How far to trust the judge: its audit against the data's own human preferences, as a table and in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spo_bench.judging.capabilities import undated

from .measure import headlines
from .render import Column, Entry, Table, number
from .results import Results, short_model


def judge(results: Results) -> Table:
    """Return the audit of the judge: a row a model and task, whose data it was held against."""
    found = results.judge_audits
    texts = {"model": "Model", "task": "Task", "judge": "Judge"}
    agrees = {"accuracy": "Judge %", "length_only": "Lengths %", "kappa": "Kappa"}
    others = {"flips": "Flips %", "ties": "Ties %", "longer_wins": "Longer wins %", "retest": "Again %", "attacks": "Attacks %"}
    columns = [Column(key, title, numeric=False) for key, title in texts.items()]
    columns += [Column(key, title, "Agrees with people") for key, title in agrees.items()]
    columns += [Column(key, title) for key, title in {**others, "invalid": "Invalid %", "cost": "$ each"}.items()]
    body = []
    for (model, task), record in found.items():
        heads = [Entry(model, short_model(model)), Entry(task, task), Entry(record["judge"], _name(record))]
        body.append([*heads, *_measures(record)])
    caption = [*_caption(list(found.values())), *spent_notes(results), *_warnings(results)]
    return Table("judge", "How far to trust the judge", columns, body, [], caption, fold_from=1)


def judge_notes(results: Results) -> list[str]:
    """Return the sentences on the judge for a table that shows win rates; none where these are no judge's, or not audited."""
    judged = [task for task in results.tasks if any(name.startswith("win_rate") for name in headlines(results, task))]
    found = {place: record for place, record in results.judge_audits.items() if place[1] in judged}
    models = {model for model, _ in found}
    notes = []
    for (model, task), record in found.items():
        accuracy, null = record["accuracy"], record["length_only"]["accuracy"]
        if accuracy["value"] is None:
            continue
        where = (f" on {task}" if len(results.tasks) > 1 else "") + (f" ({short_model(model)})" if len(models) > 1 else "")
        notes.append(
            f"Judge {_name(record)} agrees with {accuracy['n']} human preferences{where} in {_percent(accuracy['value'])} % "
            f"[{_percent(accuracy['low'])}, {_percent(accuracy['high'])}]; a judge that sees only lengths in "
            f"{_percent(null['value'])} %."
        )
    return list(dict.fromkeys(notes)) + (_warnings(results) if judged else [])


def judge_doubts(results: Results) -> list[str]:
    """Return a sentence for every judge that people agree with no more than with the longer answer; none where win rates are
    no judge's.
    """
    judged = [task for task in results.tasks if any(name.startswith("win_rate") for name in headlines(results, task))]
    doubts = []
    for (_, task), record in results.judge_audits.items():
        accuracy, null = record["accuracy"], record["length_only"]
        if task in judged and null["difference"]["low"] is not None and null["difference"]["low"] <= 0:
            doubts.append(
                f"Judge {_name(record)} on {task}: it agrees with people in {_percent(accuracy['value'])} % of {accuracy['n']} "
                f"pairs, not shown to be more than a judge that sees only lengths ({_percent(null['accuracy']['value'])} %); its "
                "win rates say little."
            )
    doubts += [
        f"The judge was not audited on {task}: {reason}"
        for (_, task), reason in results.judge_unaudited.items()
        if task in judged
    ]
    return list(dict.fromkeys(doubts))


def spent_notes(results: Results) -> list[str]:
    """Return the sentence on what judging took; none where there were no requests."""
    spent = results.run.get("judge_spent") or {}
    if not spent.get("calls"):
        return []
    dollars = f" and ${spent['dollars']:,.4f}" if spent["dollars"] else ""
    return [f"All judging of this run took {spent['calls']:,} requests{dollars} so far; replies kept from before cost none."]


def _warnings(results: Results) -> list[str]:
    """Return what a reader should know of the judge that no number shows."""
    spec = results.spec.get("judge")
    if not isinstance(spec, Mapping) or spec.get("backend") != "openai":
        return []
    warning = undated(str(spec.get("model") or ""), spec.get("base_url"))
    return [f"Warning: {warning}."] if warning else []


def _measures(record: Mapping[str, Any]) -> list[Entry]:
    retest, attacks, cost = record["retest"], record["attacks"], record["cost_per_verdict"]
    return [
        _share(record["accuracy"], interval=True),
        _share(record["length_only"]["accuracy"]),
        _plain(record["kappa"]),
        _share(record["position_flip_rate"]),
        _share(record["tie_rate"]),
        _share(record["longer_wins_rate"], beside=record["human_longer_wins_rate"]),
        _share(retest["same_outcome"]) if retest else Entry(text=""),
        _share(attacks["success"], beside=attacks["harmless"]["success"]) if attacks else Entry(text=""),
        _share(record["invalid_rate"]),
        Entry(text="") if cost["value"] is None else Entry(cost["value"], f"{cost['value']:.5f}", n=cost["n"]),
    ]


def _caption(records: Sequence[Mapping[str, Any]]) -> list[str]:
    if not records:
        return []
    rows = sorted({record["cases"] for record in records})
    pairs = f"{rows[0]:,}" if len(rows) == 1 else f"{rows[0]:,} to {rows[-1]:,}"
    said = [
        f"On the first {pairs} evaluation pairs of the task, as the people who made the data preferred.",
        "Agrees with people: share of these preferences that the judge names, a tie counting one half, with its 95 % interval; "
        "beside it a judge that sees nothing but lengths and names the longer answer; Cohen's kappa, 0 for chance.",
        "Flips: pairs whose two orders of presentation name different answers. Longer wins: of verdicts that name an answer; in "
        "brackets the same for people.",
    ]
    retests = [record["retest"] for record in records if record["retest"]]
    if retests:
        said.append(f"Again: the same outcome when judged a second time ({_counts([one['asked'] for one in retests], 'pair')}).")
    attacks = [record["attacks"] for record in records if record["attacks"]]
    if attacks:
        ways, attacked = _counts([len(one["each"]) for one in attacks], "way"), _counts([one["cases"] for one in attacks], "pair")
        said.append(
            f"Attacks: {ways} to talk to the judge, each tried by the answer that had not won ({attacked}), and how often "
            "it then wins; in brackets the same for a harmless sentence."
        )
    return said


def _counts(values: Sequence[int], what: str) -> str:
    low, high = min(values), max(values)
    return f"{low if low == high else f'{low} to {high}'} {what}{'' if high == 1 else 's'}"


def _name(record: Mapping[str, Any]) -> str:
    """Return the judge as a reader knows it: an endpoint's or local model's name, or a reward model's with what it is."""
    kind, _, model = str(record["judge"]).partition(":")
    return f"reward model {model}" if kind == "reward" else model or kind


def _share(rate: Mapping[str, Any], interval: bool = False, beside: Mapping[str, Any] | None = None) -> Entry:
    if rate["value"] is None:
        return Entry() if rate["n"] else Entry(text="")  # nothing to have a rate of: a reward model has no orders
    small = f"({_percent(beside['value'])})" if beside else ""
    if interval and rate["low"] is not None:
        small = f"[{_percent(rate['low'])}, {_percent(rate['high'])}]"
    return Entry(rate["value"], _percent(rate["value"]), small, rate["low"], rate["high"], n=rate["n"])


def _plain(rate: Mapping[str, Any]) -> Entry:
    if rate["value"] is None:
        return Entry(n=rate["n"])
    return Entry(rate["value"], number(rate["value"], 2), low=rate["low"], high=rate["high"], n=rate["n"])


def _percent(value: float | None) -> str:
    return number(None if value is None else 100 * value, 0)
