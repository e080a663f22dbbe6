"""The key content of a text as SPO's settings see it: where it stands, and at which degree it goes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from spo_bench.spo.degrade import removal
from spo_bench.spo.settings import SpoSettings

_SIDES = {"both": "chosen and rejected answers", "chosen": "chosen answers", "rejected": "rejected answers"}
_UNITS = {"phrase": "key phrases", "word": "words of key phrases"}
_ORDERS = {
    "score_desc": "those with the highest RAKE score first",
    "score_asc": "those with the lowest RAKE score first",
    "position": "from the start of the text on",
    "random": "in a random order",
}


class KeyContent:
    """Finds the key content of texts under one cell's SPO settings and seed; a text is looked at once."""

    def __init__(self, spo: Mapping[str, Any], seed: int) -> None:
        self.settings = SpoSettings(**{key: value for key, value in spo.items() if key in SpoSettings.model_fields})
        self._seed = seed
        self._known: dict[str, list[int]] = {}

    @property
    def rule(self) -> str:
        """Return one text that is equal for settings that mark the same key content in every text."""
        drawn = self.settings.order == "random" or self.settings.control == "random_removal"
        decides = (self.settings.unit, self.settings.order, self.settings.rho(), self.settings.control == "random_removal")
        return f"{decides} {self._seed if drawn else ''}"

    def spans(self, text: str) -> list[int]:
        """Return start, end, degree of every unit that some degree lacks, flat, in the order of the text.

        Offsets count UTF-16 units, as a browser's strings do. The degree is the lowest that lacks the unit.
        """
        if text not in self._known:
            self._known[text] = self._find(text)
        return self._known[text]

    def legend(self) -> str:
        """Return what the shades mean, in a few plain sentences."""
        settings = self.settings
        shares = ", ".join(f"{100 * share:.0f}\u00a0%" for share in settings.rho()[1:])
        if settings.control == "random_removal":
            what, order = "words", "drawn at random (a control), as many as key content would take"
        else:
            what, order = _UNITS[settings.unit], _ORDERS[settings.order]
        where = "answers of the SFT policy" if settings.text == "on_policy" else _SIDES[settings.side]
        how = "deleted" if settings.op == "delete" else "masked"
        return (
            f"Shaded: {what} as SPO sees them, the darkest go first. Training saw copies of its {where} with such {what} "
            f"{how}, {order}: {shares} at degrees 1 to {settings.degrees - 1}. The answers here were not trained on; they are "
            "marked by the same rule."
        )

    def _find(self, text: str) -> list[int]:
        units, counts = removal(text, self.settings, self._seed)
        lacking = sorted((count, degree) for degree, count in counts.items())
        found, before = [], 0
        for count, degree in lacking:
            found += [(unit.start, unit.end, degree) for unit in units[before:count]]
            before = max(before, count)
        if not text.isascii() and max(text) > "\uffff":
            at = [0, *accumulate(1 + (letter > "\uffff") for letter in text)]
            found = [(at[start], at[end], degree) for start, end, degree in found]
        return [number for span in sorted(found) for number in span]
