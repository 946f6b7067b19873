"""A client that submits many messages over many connections and knows, for each, what it was answered.

Each message carries an id and a fingerprint of the rest (`X-Load-Id: ID FINGERPRINT`), so that the sink can say which
one it was and whether it is intact. An id is submitted once: after a connection died behind DATA nobody can know, and
that is what its result says. The load then goes on with another edge and the next id.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, frozen

from tests.support.processes import Process, wait_until
from tests.support.sink_server import digest

QUEUED_AS = re.compile(r"queued as (\S+)")
_runs = itertools.count(1)
# Text that does not compress well, so that the queue must hold what it was given; as lines, so that any cut of it is.
_NOISE = base64.encodebytes(random.Random(1).randbytes(2 << 20)).replace(b"\n", b"\r\n")


@frozen
class Accepted:
    """250 after the final dot: from now on the relay is responsible."""

    queue_id: str


@frozen
class Refused:
    """A negative reply, at whatever command; the message is still the client's."""

    reply: str


@frozen
class Unanswered:
    """The connection ended behind DATA without a reply: the message may have been queued."""

    reason: str


Answer = Accepted | Refused | Unanswered


@define
class Sent:
    """One message and its answer. `edge` is the address that it was given to; times are monotonic seconds."""

    load_id: str
    sender: str
    recipients: tuple[str, ...]
    edge: str
    started: float
    answered: float
    answer: Answer


def message(load_id: str, sender: str, recipients: Sequence[str], size: int) -> bytes:
    """A message of about `size` octets that carries its id and its own fingerprint."""
    head = (
        f"From: <{sender}>\r\nTo: {', '.join(f'<{recipient}>' for recipient in recipients[:3])}\r\n"
        f"Subject: {load_id}\r\nMessage-ID: <{load_id}@load.test>\r\nDate: Mon, 02 Nov 2026 10:00:00 +0000\r\n\r\n"
    )
    start = zlib.crc32(load_id.encode()) % (len(_NOISE) - size)
    noise = _NOISE[start : start + max(80, size - len(head) - 60)].strip(b"\r\n")
    rest = head.encode() + noise + b"\r\n"
    return f"X-Load-Id: {load_id} {digest(rest)}\r\n".encode() + rest


class Load:
    """`count` messages over `connections` connections to `edges`, in a thread of its own.

    `recipients` gives the recipients of the nth message. The reverse-path is `ID@bounce.test`, so that a notice names the
    message that it is about. With `accept_all` as many further ids are submitted as were refused, until `count` were
    accepted. `per_second` paces the start of the messages. `on_content(n, edge)` is called, in the thread, in the middle of the nth message's content: the moment to
    kill an edge in DATA.
    """

    def __init__(
        self,
        edges: Sequence[str],
        count: int,
        recipients: Callable[[int], Sequence[str]],
        *,
        connections: int = 20,
        per_connection: int = 100,
        size: int = 2048,
        pause_after_refusal_seconds: float = 0.1,
        accept_all: bool = False,
        per_second: float = 0.0,
        answer_seconds: float = 60.0,
        on_content: Callable[[int, str], None] | None = None,
    ) -> None:
        self.run = next(_runs)
        self.edges = list(edges)
        self.count = count
        self.recipients = recipients
        self.connections = connections
        self.per_connection = per_connection
        self.size = size
        self.pause_after_refusal_seconds = pause_after_refusal_seconds
        self.accept_all = accept_all
        self.per_second = per_second
        self.answer_seconds = answer_seconds
        self.on_content = on_content
        self.sent: list[Sent] = []
        self.connect_failures: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._accepted = 0
        self._open = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._main, daemon=True, name=f"load-{self.run}")
        self._failure: BaseException | None = None

    def start(self) -> Load:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Submit no further message; those under way get their answer. Waits for that."""
        self._stopping = True
        self.wait(self.answer_seconds + 10)

    def wait(self, timeout_seconds: float = 120.0, *, watched: Sequence[Process] = ()) -> list[Sent]:
        """All results, when the load is through."""
        wait_until(lambda: not self._thread.is_alive(), "the load is through", timeout_seconds, watched=watched)
        if self._failure is not None:
            raise self._failure
        return self.sent

    def wait_for(self, accepted: int, timeout_seconds: float = 60.0, *, watched: Sequence[Process] = ()) -> None:
        """Wait until so many messages have been answered 250."""

        def enough() -> bool:
            if self._accepted < accepted and not self._thread.is_alive():
                raise self._failure or AssertionError(
                    f"the load ended with {self._accepted} accepted: {self.summary()}"
                )
            return self._accepted >= accepted

        wait_until(enough, f"{accepted} messages are accepted", timeout_seconds, watched=watched)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def accepted(self) -> dict[str, Sent]:
        """Load id → what was sent, for every message that was answered 250."""
        return {sent.load_id: sent for sent in list(self.sent) if isinstance(sent.answer, Accepted)}

    def refusals(self) -> Counter[str]:
        """The negative replies, and how often."""
        return Counter(sent.answer.reply for sent in list(self.sent) if isinstance(sent.answer, Refused))

    def summary(self) -> dict[str, Any]:
        """For the report of a failed test."""
        kinds = Counter(type(sent.answer).__name__ for sent in list(self.sent))
        return {**kinds, "refusals": dict(self.refusals()), "connect failures": dict(self.connect_failures)}

    # -- in the thread

    def _main(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as error:
            self._failure = error

    async def _work(self) -> None:
        self._began = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._client(number) for number in range(self.connections)))

    def _next(self) -> int | None:
        """The number of the next message to submit, or None when it is enough."""
        if self._stopping:
            return None
        if self.accept_all:
            if self._accepted + self._open >= self.count:
                return None
        elif (number := next(self._numbers)) >= self.count:
            return None
        else:
            self._open += 1
            return number
        self._open += 1
        return next(self._numbers)

    def _record(self, sent: Sent) -> None:
        self._open -= 1
        self._accepted += isinstance(sent.answer, Accepted)
        self.sent.append(sent)

    async def _client(self, client: int) -> None:
        edges = itertools.cycle(self.edges[client % len(self.edges) :] + self.edges[: client % len(self.edges)])
        edge = next(edges)
        number = None
        while True:
            if number is None:
                number = self._next()
            if number is None:
                # With accept_all a message under way may still be refused, and its place become free again.
                if self.accept_all and self._open and not self._stopping:
                    await asyncio.sleep(0.02)
                    continue
                return
            try:
                connection = await Connection.open(edge, self.answer_seconds)
            except (OSError, EOFError, TimeoutError, Unwelcome) as error:
                self.connect_failures[f"{edge} {error!r}"[:120]] += 1
                if self._stopping:
                    self._open -= 1
                    return
                edge = next(edges)
                await asyncio.sleep(0.05)
                continue
            try:
                for _ in range(self.per_connection):
                    sent = await self._submit(connection, edge, number)
                    if sent is None:
                        break  # the connection ended before DATA: the same message again, elsewhere
                    self._record(sent)
                    number = None
                    if isinstance(sent.answer, Unanswered):
                        break
                    if isinstance(sent.answer, Refused):
                        await asyncio.sleep(self.pause_after_refusal_seconds)
                    number = self._next()
                    if number is None:
                        break
            finally:
                connection.close()
            if sent is None or isinstance(sent.answer, Unanswered):
                edge = next(edges)
                await asyncio.sleep(0.02)

    async def _submit(self, connection: Connection, edge: str, number: int) -> Sent | None:
        loop = asyncio.get_running_loop()
        if self.per_second:
            await asyncio.sleep(max(0.0, self._began + number / self.per_second - loop.time()))
        load_id = f"r{self.run}n{number}"
        sender = f"{load_id}@bounce.test"
        recipients = tuple(self.recipients(number))
        content = message(load_id, sender, recipients, self.size)
        started = loop.time()

        def result(answer: Answer) -> Sent:
            return Sent(load_id, sender, recipients, edge, started, loop.time(), answer)

        commands = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients), "DATA"]
        try:
            connection.write("".join(f"{command}\r\n" for command in commands).encode())
            replies = [await connection.reply() for _ in commands]
        except (OSError, EOFError, TimeoutError):
            return None
        bad = [reply for reply in replies if reply[:1] not in "23"]
        if replies[-1][:3] == "354" and bad:
            # Some recipients were refused; the load gives the whole message up, with an empty content to end DATA.
            connection.close()
            return result(Refused(bad[0]))
        if bad:
            if replies[0][:1] == "2":
                connection.write(b"RSET\r\n")
                try:
                    await connection.reply()
                except (OSError, EOFError, TimeoutError):
                    return None
            return result(Refused(bad[0]))
        try:
            wire = content.replace(b"\r\n.", b"\r\n..") + b".\r\n"
            if self.on_content is not None:
                connection.write(wire[: len(wire) // 2])
                self.on_content(number, edge)
                connection.write(wire[len(wire) // 2 :])
            else:
                connection.write(wire)
            reply = await connection.reply()
        except (OSError, EOFError, TimeoutError) as error:
            return result(Unanswered(repr(error)))
        if reply[:1] == "2":
            found = QUEUED_AS.search(reply)
            return result(Accepted(found[1] if found else ""))
        return result(Refused(reply))


class Unwelcome(Exception):
    """The greeting or the answer to EHLO was negative."""


class Connection:
    """A client's session after EHLO."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer_seconds: float) -> None:
        self._reader, self._writer, self._answer_seconds = reader, writer, answer_seconds

    @classmethod
    async def open(cls, edge: str, answer_seconds: float) -> Connection:
        """Connect to "host:port" and say EHLO."""
        host, _, port = edge.rpartition(":")
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 10)
        connection = cls(reader, writer, answer_seconds)
        for command in (b"", b"EHLO load.test\r\n"):
            connection.write(command)
            reply = await connection.reply()
            if reply[:1] != "2":
                connection.close()
                raise Unwelcome(reply)
        return connection

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def reply(self) -> str:
        """One reply; continuation lines are dropped. Raises OSError, EOFError, TimeoutError."""
        async with asyncio.timeout(self._answer_seconds):
            while True:
                line = await self._reader.readline()
                if not line.endswith(b"\r\n"):
                    raise EOFError("connection closed")
                if line[3:4] != b"-":
                    return line.decode("utf-8", "replace").rstrip()

    def close(self) -> None:
        self._writer.close()


def over_domains(domains: int, seed: int = 1) -> Callable[[int], list[str]]:
    """Recipients for `Load`: each message to one of `domains` domains dN.test, in an order that is the same each time."""
    order = list(range(1, domains + 1))
    random.Random(seed).shuffle(order)
    return lambda number: [f"user{number}@d{order[number % domains]}.test"]
