#!/usr/bin/env python3
"""What is measured by the suite `client`, each way in a process of its own: 5 KiB messages to one sink over 20 connections.

    reference   a bare Twisted protocol that counts lines: what sending costs at least
    client      the client conversation over `net.outbound`, without a queue
    settle      a delivery node: claimed from Redis (`appendfsync always`), sent, settled

    python -m bench.sending client --port 2525 --messages 10000 --out result.json

Replies are read, and nothing is measured before all connections stand, or, with `settle`, a tenth is done.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol

reactor: Any = _reactor

CONNECTIONS = 20
HOST = "127.1.0.1"
CONTENT = b"Subject: measured\r\n\r\n" + (b"x" * 78 + b"\r\n") * 63 + b"y" * 58 + b"\r\n"
SENDER, RECIPIENT, DOMAIN = "sender@bench.test", "user@d1.test", "d1.test"


class Watch:
    """The time and the CPU from `start` until `messages` are done; then it calls back."""

    def __init__(self, messages: int) -> None:
        self.messages = messages
        self.done = 0
        self.finished: Deferred[dict[str, float]] = Deferred()

    def start(self) -> None:
        """From here on."""
        self._done = self.done
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def count(self) -> None:
        """One more message."""
        self.done += 1
        if self.done == self.messages:
            wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
            counted = self.done - self._done
            self.finished.callback(
                {
                    "rate": round(counted / wall, 1),
                    "cpu_microseconds": round(cpu / counted * 1e6, 2),
                    "messages": counted,
                }
            )

    @property
    def left(self) -> bool:
        return self.done < self.messages


class Reference(Protocol):
    """The least that sends mail: one write for the envelope, three replies, one write for the content, one reply."""

    ENVELOPE = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n".encode()
    transport: Any

    def __init__(self, ready: Callable[[Reference], None], watch: Watch) -> None:
        self._ready = ready
        self._watch = watch
        self._step = self._greeted
        self._wanted = 1
        self._lines = 0

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        self._lines += data.count(b"\n")
        if self._lines >= self._wanted and data.endswith(b"\n"):
            self._lines = 0
            self._step()

    def _greeted(self) -> None:
        self._step, self._wanted = self._stands, 1
        self.transport.write(b"EHLO bench.test\r\n")

    def _stands(self) -> None:
        self._ready(self)

    def send(self) -> None:
        self._step, self._wanted = self._may_send, 3
        self.transport.write(self.ENVELOPE)

    def _may_send(self) -> None:
        self._step, self._wanted = self._sent, 1
        self.transport.write(CONTENT + b".\r\n")

    def _sent(self) -> None:
        self._watch.count()
        if self._watch.left:
            self.send()


def reference(port: int, watch: Watch, _work: Path) -> None:
    """Begin with the bare client."""
    standing: list[Reference] = []

    def ready(protocol: Reference) -> None:
        standing.append(protocol)
        if len(standing) == CONNECTIONS:
            watch.start()
            for each in standing:
                each.send()

    class Clients(Factory):
        noisy = False

        def buildProtocol(self, addr: object) -> Reference:
            return Reference(ready, watch)

    for _ in range(CONNECTIONS):
        TCP4ClientEndpoint(reactor, HOST, port).connect(Clients())


def client(port: int, watch: Watch, _work: Path) -> None:
    """Begin with ours."""
    from relaycluster.mail.address import Address
    from relaycluster.mail.envelope import Envelope
    from relaycluster.mail.outcome import Delivered, Outcome
    from relaycluster.net.outbound import OutboundConnection, OutboundSettings, Target, connect
    from relaycluster.smtp.client_events import TLSPolicy, Transaction

    envelope = Envelope(Address(SENDER, "bench.test"), (Address(RECIPIENT, DOMAIN),))
    settings = OutboundSettings("bench.test")
    target = Target("mx.bench.test", HOST, port, TLSPolicy.NONE)
    standing: list[OutboundConnection] = []

    def send(connection: OutboundConnection) -> None:
        connection.send(Transaction(envelope, CONTENT, len(CONTENT))).addCallback(sent, connection)

    def sent(outcomes: tuple[Outcome, ...], connection: OutboundConnection) -> None:
        assert type(outcomes[0]) is Delivered
        watch.count()
        if watch.left:
            send(connection)

    def ready(connection: OutboundConnection) -> None:
        standing.append(connection)
        if len(standing) == CONNECTIONS:
            watch.start()
            for each in standing:
                send(each)

    for _ in range(CONNECTIONS):
        connect(reactor, target, settings).addCallback(ready)


CONFIGURATION = """\
[node]
id = "bench"
hostname = "relay.bench.test"
roles = ["delivery"]
state_dir = "{state}"
drain_deadline = "1s"

[redis]
url = "embedded"
durability = "fsync"

[http]
listen = ""

[[destination]]
match = ["*"]
hosts = ["{host}:{port}"]
connections = {connections}
messages_per_connection = 1000000
"""


def settle(port: int, watch: Watch, work: Path) -> None:
    """Begin with a delivery node whose queue is full."""
    from relaycluster.app.node import Node
    from relaycluster.config import load
    from relaycluster.mail import queue_id
    from relaycluster.mail.address import Address
    from relaycluster.mail.envelope import Envelope
    from relaycluster.mail.item import Claim, Item
    from relaycluster.policy.ring import partition_of

    state = work / "state"
    state.mkdir(parents=True)
    path = work / "relaycluster.toml"
    path.write_text(CONFIGURATION.format(state=state, host=HOST, port=port, connections=CONNECTIONS))
    envelope = Envelope(Address(SENDER, "bench.test"), (Address(RECIPIENT, DOMAIN),))

    class Preloaded(Node):
        """Fills the queue once Redis is there, before it joins the cluster."""

        async def _first_connection(self) -> None:
            await super()._first_connection()
            partition = partition_of(DOMAIN, self._queue.partitions)
            for start in range(0, watch.messages, 200):
                now = time.time_ns() // 1_000_000
                waiting = [
                    self._queue.enqueue(
                        Item(queue_id.make(now, partition, number), DOMAIN, envelope, len(CONTENT), now), CONTENT, None
                    )
                    for number in range(start, min(start + 200, watch.messages))
                ]
                for each in waiting:
                    await each
            assert self._back is not None
            settlement = self._back.settlement
            was_settled = settlement.on_settled

            def settled(claim: Claim) -> None:
                was_settled(claim)
                watch.count()
                if watch.done == watch.messages // 10:
                    watch.start()

            settlement.on_settled = settled

    def failed(line: str) -> None:
        watch.finished.errback(RuntimeError(line))

    node = Preloaded(load(str(path), {}, {}), lambda: load(str(path), {}, {}), failed)
    reactor.addSystemEventTrigger("before", "shutdown", node.stopService)
    node.startService()


WAYS = {"reference": reference, "client": client, "settle": settle}


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.sending")
    parser.add_argument("way", choices=sorted(WAYS))
    parser.add_argument("--port", type=int, required=True, help=f"the sink's, on {HOST}")
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--work", type=Path, required=True, help="an empty directory, on a disk")
    parser.add_argument("--out", type=Path, required=True, help="where the figures go")
    parser.add_argument("--profile", type=Path, help="keep a profile (cProfile) in this file")
    options = parser.parse_args()
    failures: list[BaseException] = []
    watch = Watch(options.messages)

    def finish(found: dict[str, float]) -> None:
        options.out.write_text(json.dumps(found))

    def failed(failure: Any) -> None:
        failures.append(failure.value)

    watch.finished.addCallbacks(finish, failed).addBoth(lambda _: reactor.callLater(0, reactor.stop))
    reactor.callWhenRunning(WAYS[options.way], options.port, watch, options.work)
    if options.profile is not None:
        import cProfile

        cProfile.runctx("reactor.run()", globals(), {}, str(options.profile))
    else:
        reactor.run()
    for failure in failures:
        print(f"bench.sending: {failure}")
    return 1 if failures or watch.left else 0


if __name__ == "__main__":
    raise SystemExit(main())
