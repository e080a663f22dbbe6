"""An OpenAI-compatible endpoint of our own that judges by a script, speaks real HTTP, and fails in every known way.

In a test, the fixture `endpoint` is one in a thread of this process, whose script is any function. As a program it also outlives a
client that is killed, and its log says what was asked:

    python tests/endpoint.py --port 0 --script faulty --delay 0.05 --allow 32 --log FILE

prints its address, then writes a JSON line a request: time, key (of the prompt as it was shown), what (was done with it), status, open
(requests under way, this one included), answered (whether a whole reply went out). Standard library only, one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO


@dataclass
class Answer:
    """What the endpoint does with one request."""

    text: str | None = "[[A]]"
    status: int = 200
    finish_reason: str | None = "stop"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # in place of a completion
    usage: dict[str, int] | None = field(default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10})
    reset: bool = False
    delay: float = 0.0
    refusal: str | None = None
    logprobs: dict[str, float] | None = None  # of the tokens that the reply may have begun with
    what: str = ""  # a name for the log

    def payload(self) -> bytes:
        """Return the response's body."""
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish_reason, "message": message, "logprobs": None}
        if self.logprobs is not None:
            top = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in self.logprobs.items()]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
        completion = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge-2030-01-01"}
        return json.dumps({**completion, "choices": [choice], "usage": self.usage}).encode()

    @property
    def whole(self) -> bool:
        """Whether this is a reply that was not cut."""
        return self.status == 200 and self.body is None and not self.reset and self.what != "cut"


Script = Callable[[dict[str, Any], int], Answer]


def refusal(status: int, message: str, **fields: Any) -> Answer:
    """Return an error as OpenAI words it: {"error": {"message", ...}}."""
    what = f"refused {fields['param']}" if "param" in fields else str(status)
    return Answer(status=status, body=json.dumps({"error": {"message": message, **fields}}).encode(), what=what)


def digest(value: Any) -> str:
    """Return a hash of JSON values."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# -- scripts: (body of the request, its number) -> answer ---------------------------------------------------------------------


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """Return the two answers in a request, in the order shown."""
    text = "\n".join(message["content"] for message in body["messages"])
    first, second = (re.search(rf"<answer_{s}_(\w+)>\n(.*?)\n</answer_{s}_\1>", text, re.S) for s in "ab")
    assert first is not None
    assert second is not None
    return first[2], second[2]


def said(body: dict[str, Any], letter: str) -> Answer:
    """Return a verdict in the form that was asked for: JSON, log-probabilities of the first token, or text."""
    if body.get("response_format", {}).get("type") == "json_schema":
        return Answer(json.dumps({"reasoning": "So.", "verdict": letter}), what="json")
    if body.get("logprobs"):
        shares = {"A": (0.98, 0.01, 0.01), "B": (0.01, 0.98, 0.01), "C": (0.01, 0.01, 0.98)}[letter]
        chances = sorted(zip("ABC", shares), key=lambda pair: -pair[1])
        cut = 1 in (body.get("max_tokens"), body.get("max_completion_tokens"))  # a reply of one token always ends by its length
        top = {token: math.log(share) for token, share in chances}
        return Answer(letter, finish_reason="length" if cut else "stop", logprobs=top, what="logprobs")
    return Answer(f"So: [[{letter}]]", what="text")


def first_is_better(body: dict[str, Any], number: int) -> Answer:
    """Always name the answer shown first, in text."""
    return Answer("[[A]]")


def fair(body: dict[str, Any], number: int) -> Answer:
    """Prefer the answer with "good" in it."""
    first, second = ("good" in text for text in shown(body))
    return said(body, "A" if first and not second else "B" if second and not first else "C")


def modern(body: dict[str, Any], number: int) -> Answer:
    """A model that knows neither max_tokens nor temperature."""
    if "max_tokens" in body:
        return refusal(
            400, "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", param="max_tokens"
        )
    if "temperature" in body:
        return refusal(400, "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) is.")
    return fair(body, number)


def plain(body: dict[str, Any], number: int) -> Answer:
    """A server that gives text only."""
    for name in ("response_format", "logprobs", "top_logprobs"):
        if name in body:
            return refusal(400, f"Unrecognized request argument supplied: {name}", param=name)
    return fair(body, number)


FAULTS: dict[str, tuple[int, Answer]] = {  # at the first sight of a body: per cent of all bodies
    "busy": (11, replace(refusal(429, "slow down"), headers={"retry-after-ms": "150"})),
    "busy for a second": (1, replace(refusal(429, "slow down"), headers={"retry-after": "1"})),
    "broken": (12, refusal(500, "the server had an error")),
    "slow": (8, Answer(delay=0.3)),
    "hanging": (1, Answer(delay=600.0)),
    "no json": (5, Answer(body=b'{"id": "x", "choices": [{"index": 0, "mess')),
    "html": (5, Answer(body=b"<html><body>Bad gateway</body></html>", headers={"content-type": "text/html"})),
    "reset": (7, Answer(reset=True)),
}
CUT = 8  # per cent of all prompts
MUTE = 4  # per cent of all pairs of answers


def mute(one: str, other: str) -> bool:
    """Whether the faulty script never gives a verdict on these two answers, in whichever order."""
    return int(digest(sorted([one, other])), 16) % 100 < MUTE


class Faulty:
    """As fair as `modern`, but the first sight of a body meets a fault, replies are cut, and on some pairs it has no verdict.

    Which body, prompt or pair meets what is a matter of its hash, so that it is the same whatever the order of requests.
    """

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.limits: dict[str, int] = {}

    def __call__(self, body: dict[str, Any], number: int) -> Answer:
        answer = modern(body, number)
        if answer.status != 200:
            return answer
        name = digest(body)
        self.seen[name] += 1
        fault = self.fault(int(name, 16) % 100) if self.seen[name] == 1 else ""
        if fault and fault != "slow":
            return replace(FAULTS[fault][1], what=fault)
        if self.cut(body):
            answer = replace(answer, text="So: [[A]] is what I would", finish_reason="length", what="cut")
        elif mute(*shown(body)):
            tokens = {"I": -0.1, "Both": -2.4}
            answer = replace(answer, text="I cannot say.", logprobs=answer.logprobs and tokens, what="mute")
        return replace(answer, delay=FAULTS["slow"][1].delay if fault else 0.0)

    @staticmethod
    def fault(place: int) -> str:
        """Return the fault at one of the hundred places, or an empty name."""
        for name, (share, _) in FAULTS.items():
            if place < share:
                return name
            place -= share
        return ""

    def cut(self, body: dict[str, Any]) -> bool:
        """Whether the reply is cut: at the limit that came first with its prompt, not at a higher one."""
        prompt = digest(body["messages"])
        limit = body.get("max_completion_tokens", math.inf)
        if int(prompt, 16) % 100 >= CUT or body.get("logprobs") or limit == math.inf:
            return False
        return limit <= self.limits.setdefault(prompt, limit)


SCRIPTS: dict[str, Callable[[], Script]] = {
    "fair": lambda: fair,
    "modern": lambda: modern,
    "plain": lambda: plain,
    "faulty": Faulty,
}


# -- the server ---------------------------------------------------------------------------------------------------------------


class Endpoint:
    """An endpoint that answers by ``script(body, number of the request)`` and remembers what it was asked.

    Args:
        script: what is answered.
        delay: seconds that every answer takes, besides its own.
        allow: requests under way at once; one more is answered 429 at once. None: no limit.
        log: where a line a request goes, instead of the memory.
    """

    def __init__(
        self, script: Script = first_is_better, delay: float = 0.0, allow: int | None = None, log: TextIO | None = None
    ) -> None:
        self.script, self.delay, self.allow, self.log = script, delay, allow, log
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.number = self.open = self.most_open = 0
        self.connections: set[_Connection] = set()
        self.url = ""

    async def listen(self, port: int = 0) -> asyncio.Server:
        """Open the port; 0 is any free one."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port, backlog=512)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        return server

    async def answer(self, head: str, content: bytes) -> Answer:
        """Return the answer to a request, when it is due."""
        method, path, *_ = head.split(" ", 2)
        if method != "POST" or not path.endswith("/chat/completions"):
            return refusal(404, f"nothing is at {method} {path}")
        body = json.loads(content)
        number, self.number = self.number, self.number + 1
        if self.log is None:
            self.bodies.append(body)
            self.keys.append(re.findall(r"(?im)^authorization: *(.*?)\r?$", head)[0])
            self.times.append(time.monotonic())
        self.open += 1
        self.most_open = max(self.most_open, under_way := self.open)
        answer, hung_up = Answer(what="script failed"), True
        try:
            if self.allow is not None and under_way > self.allow:
                answer = replace(refusal(429, f"more than {self.allow} requests at once"), what="too many")
            else:
                answer = self.script(body, number)
                await asyncio.sleep(self.delay + answer.delay)
            hung_up = False
        finally:  # also where the client hangs up meanwhile
            self.open -= 1
            if self.log is not None:
                line = {"time": time.time(), "key": digest(body["messages"]), "what": answer.what, "status": answer.status}
                line |= {"open": under_way, "answered": answer.whole and not hung_up}
                self.log.write(json.dumps(line) + "\n")
        return answer


class _Connection(asyncio.Protocol):
    """One connection: requests one after another, until either side ends it."""

    transport: asyncio.Transport

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.buffer = b""
        self.task: asyncio.Task[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.endpoint.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.endpoint.connections.discard(self)
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.task is None:
            self.begin()

    def begin(self) -> None:
        """Begin with the next request, if all of it is there."""
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        size = int(length[1]) if length else 0
        if found and len(rest) >= size:
            self.buffer = rest[size:]
            self.task = asyncio.get_running_loop().create_task(self.endpoint.answer(head.decode("latin-1"), rest[:size]))
            self.task.add_done_callback(self.end)

    def end(self, task: asyncio.Task[Answer]) -> None:
        """Send the answer. A script that fails is an answer too, so that a test shows why."""
        self.task = None
        if task.cancelled() or self.transport.is_closing():
            return
        error = task.exception()
        answer = task.result() if error is None else refusal(500, f"the script failed: {error!r}")
        if answer.reset:  # linger 0 makes close() a reset, not an orderly end
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
            return
        payload = answer.payload()
        headers = {"content-type": "application/json", "content-length": str(len(payload)), **answer.headers}
        lines = [f"HTTP/1.1 {answer.status} x", *(f"{name}: {value}" for name, value in headers.items()), "\r\n"]
        self.transport.write("\r\n".join(lines).encode("latin-1") + payload)
        self.begin()


@contextmanager
def in_thread(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serve from a thread of this process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(endpoint.listen(), loop).result()

    async def close() -> None:
        server.close()
        for connection in [*endpoint.connections]:
            connection.transport.abort()
        await asyncio.sleep(0)  # a lost connection is told on the next turn
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield endpoint
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def program(*arguments: str) -> Iterator[str]:
    """Run this file as a program of its own, on any free port unless it is named; yield its address."""
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def log_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; the last may still be in the writing."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--script", choices=[*SCRIPTS], default="fair")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds an answer takes")
    parser.add_argument("--allow", type=int, help="requests at once; more are refused")
    parser.add_argument("--log", type=Path, default=Path("/dev/null"), help="file for a line a request; what is there stays")
    wanted = parser.parse_args()

    async def serve() -> None:
        with wanted.log.open("a", buffering=1) as log:
            endpoint = Endpoint(SCRIPTS[wanted.script](), wanted.delay, wanted.allow, log)
            server = await endpoint.listen(wanted.port)
            sys.stdout.write(endpoint.url + "\n")
            sys.stdout.flush()
            await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
