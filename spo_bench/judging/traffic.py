"""How many requests are under way at once, and how long to wait before one is repeated."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

BACK = 0.75  # what a refusal leaves of the limit
START = 4  # requests under way before anything is known of the endpoint
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds, of waits that no header asks for


class Traffic:
    """A limit on the requests under way that finds its own height.

    It doubles a round while all goes well, up to the first refusal; a refusal lowers it, once for all requests that were under
    way together; from then on it grows by one a round. A wait that the endpoint asks for holds for all.

    Args:
        ceiling: it never grows above this.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = float(min(START, ceiling))
        self.open = 0
        self.most_open = 0
        self._growing = True
        self._resume = 0.0
        self._lowered = -1.0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a place among the requests under way, and for the end of any pause."""
        async with self._changed:
            while self.open >= int(self.limit):
                await self._changed.wait()
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            while (left := self._resume - time.monotonic()) > 0:
                await asyncio.sleep(left + random.uniform(0.0, 0.1) * min(left, 10.0))  # not all at the same moment
            yield
        finally:
            async with self._changed:
                self.open -= 1
                self._changed.notify_all()

    def answered(self) -> None:
        """Tell that a request was answered: the limit may grow."""
        self.limit = min(self.ceiling, self.limit + (1.0 if self._growing else 1.0 / self.limit))

    def refused(self, began: float, wait: float | None) -> None:
        """Tell that the endpoint has too much to do: the limit falls, and all wait as long as it asks (seconds).

        ``began``: when the request was sent, by ``time.monotonic``; what was sent before it fell last says nothing new.
        """
        self._growing = False
        if wait is not None:
            self._resume = max(self._resume, time.monotonic() + wait)
        if began >= self._lowered:
            self.limit = max(1.0, self.limit * BACK)
            self._lowered = time.monotonic()


def backoff(tries: int) -> float:
    """Return seconds to wait after so many failed tries: they grow twofold, and are drawn at random so that waits spread."""
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (tries - 1))
    return random.uniform(longest / 2, longest)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds an endpoint asks to wait (``retry-after-ms``, ``Retry-After`` as seconds or date), None: it does not."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        said = headers.get("retry-after")
        if said is None:
            return None
        if said.strip().replace(".", "", 1).isdigit():
            return float(said)
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
