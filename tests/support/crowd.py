"""A crowd of bad neighbours, as a process of its own: sessions that only sit there, that drip octets, that send junk.

    python -m tests.support.crowd --port 2525 --idle 5000 --slow 200 --junk 50 [--tls]

It says `idle N` when N sessions sit there, greeted and introduced, then `ready` when the rest is at work, and goes on until its
input ends; then one line of JSON tells how it went. Every neighbour has an address of its own, 127.1.x.y. Idle ones never say
another word. Slow ones send one octet a second: half of them a command line, half of them content. Junk comes in bursts of
4 KiB, five a second and neighbour; who is thrown out comes again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import select
import socket
import ssl
import sys
import time
from collections.abc import Sequence

from attrs import define

BURST_OCTETS = 4096
_random = random.Random(7)
# Lines of every kind of nonsense, some of which look like SMTP.
_JUNK = b"".join(
    _random.choice((b"MAIL FROM:", b"EHLO ", b"\0", b"BDAT ", b"GET", b"", b"RCPT TO:<", b"AUTH PLAIN "))
    + _random.randbytes(_random.randint(0, 90)).replace(b"\n", b"\r\n")
    + b"\r\n"
    for _ in range(2000)
)


def address(number: int) -> str:
    """The neighbour's own."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


def connect(port: int, number: int) -> socket.socket:
    """A blocking connection from the neighbour's address."""
    return socket.create_connection(("127.0.0.1", port), 30, (address(number), 0))


def say(session: socket.socket, command: bytes) -> None:
    """One command and the whole reply to it; OSError when the server has left."""
    session.sendall(command)
    received = b""
    while not received.endswith(b"\n") or received.splitlines()[-1][3:4] == b"-":
        data = session.recv(4096)
        if not data:
            raise ConnectionError("closed")
        received += data


def idle_session(port: int, number: int, tls: ssl.SSLContext | None) -> socket.socket:
    """Greeted, secured if it is to be, introduced."""
    session = connect(port, number)
    say(session, b"")
    if tls is not None:
        say(session, b"EHLO idle.test\r\n")
        say(session, b"STARTTLS\r\n")
        session = tls.wrap_socket(session)
    say(session, b"EHLO idle.test\r\n")
    return session


@define(eq=False)
class Neighbour:
    """A slow one or a loud one."""

    number: int
    pause_seconds: float
    junk: bool
    due: float = 0.0
    session: socket.socket | None = None
    comebacks: int = -1

    def act(self, port: int) -> None:
        """The next octet, or the next burst; whatever is answered is not read but thrown away."""
        try:
            if self.session is None:
                self.comebacks += 1
                self.session = connect(port, self.number)
                if not self.junk:
                    self._begin(self.session)
                self.session.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while self.session.recv(65536):
                    pass
                raise ConnectionError("closed")
            with contextlib.suppress(BlockingIOError):
                self.session.send(self._octets())
        except OSError:
            if self.session is not None:
                self.session.close()
            self.session = None

    def _begin(self, session: socket.socket) -> None:
        say(session, b"")
        say(session, b"EHLO slow.test\r\n")
        if self.number % 2:
            for command in (b"MAIL FROM:<slow@slow.test>\r\n", b"RCPT TO:<slow@slow.test>\r\n", b"DATA\r\n"):
                say(session, command)

    def _octets(self) -> bytes:
        if not self.junk:
            return b"x"
        start = _random.randrange(len(_JUNK) - BURST_OCTETS)
        return _JUNK[start : start + BURST_OCTETS]


def run(port: int, idle: int, slow: int, junk: int, tls: bool) -> dict[str, int]:
    """Until the input ends; what became of them."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    sitting = [idle_session(port, number, context) for number in range(idle)]
    print(f"idle {idle}", flush=True)
    now = time.monotonic()
    neighbours = [Neighbour(idle + number, 1.0, False, now + number / max(slow, 1)) for number in range(slow)]
    neighbours += [
        Neighbour(idle + slow + number, 0.2, True, now + 0.2 * number / max(junk, 1)) for number in range(junk)
    ]
    said = False
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        now = time.monotonic()
        for neighbour in neighbours:
            if neighbour.due <= now:
                neighbour.act(port)
                neighbour.due += neighbour.pause_seconds
        if not said and all(neighbour.comebacks >= 0 for neighbour in neighbours):
            said = True
            print("ready", flush=True)
    return {
        "idle": sum(map(is_open, sitting)),
        "slow": sum(neighbour.session is not None for neighbour in neighbours if not neighbour.junk),
        "thrown out": sum(neighbour.comebacks for neighbour in neighbours if neighbour.junk),
    }


def is_open(session: socket.socket) -> bool:
    """The server has neither closed it nor said anything."""
    # TLS sends session tickets behind the handshake: they are not words.
    session.setblocking(False)
    try:
        return session.recv(100) != b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    for kind in ("idle", "slow", "junk"):
        parser.add_argument(f"--{kind}", type=int, default=0)
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args(words)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(run(options.port, options.idle, options.slow, options.junk, options.tls)), flush=True)


if __name__ == "__main__":
    main()
