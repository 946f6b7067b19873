"""A receiving SMTP server on a real loopback socket that misbehaves exactly as it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory, Protocol

GOOD = {
    "GREETING": "220 mx.example.com ESMTP",
    "EHLO": "250-mx.example.com\r\n250-PIPELINING\r\n250-SIZE 50000000\r\n250 8BITMIME",
    "HELO": "250 mx.example.com",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go",
    "DOT": "250 2.0.0 queued",
    "RSET": "250 2.0.0 reset",
    "QUIT": "221 2.0.0 bye",
    "STARTTLS": "220 2.0.0 go",
}

Action = str | Callable[["ScriptedSession"], None]


def drop(session: ScriptedSession) -> None:
    """Close without a word."""
    session.is_deaf = True
    session.transport.loseConnection()


def reset(session: ScriptedSession) -> None:
    """Cut off."""
    session.is_deaf = True
    session.transport.abortConnection()


def hang(session: ScriptedSession) -> None:
    """Say nothing, for ever."""
    session.is_deaf = True


def stop_reading(session: ScriptedSession) -> None:
    """Read no more."""
    session.transport.pauseProducing()


class ScriptedSession(Protocol):
    """One connection. `script` maps a verb (GREETING, a command's, CONTENT for the first octets of a content, DOT) to
    replies or actions, one for each time, the last one from then on; what is not in it goes well."""

    transport: Any
    factory: ScriptedServer

    def connectionMade(self) -> None:
        self.is_deaf = False
        self._buffer = b""
        self._in_content = False
        self._content = bytearray()
        self.act("GREETING")

    def act(self, verb: str) -> str:
        self.factory.heard.append(verb)
        actions = self.factory.script.get(verb)
        action: Action = GOOD.get(verb, "") if not actions else actions.pop(0) if len(actions) > 1 else actions[0]
        if not isinstance(action, str):
            action(self)
            return ""
        if action:
            self.say(action)
        return action

    def say(self, text: str) -> None:
        self.transport.write(f"{text}\r\n".encode())

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer and not self.is_deaf:
            if self._in_content:
                self._receive_content()
                if self._in_content:
                    return
                continue
            line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                return
            self._buffer = rest
            self.factory.lines.append(line.decode())
            verb = line.split(b" ")[0].decode().upper()
            said = self.act(verb)
            if verb == "DATA" and said.startswith("354"):
                self._in_content = True
                self._content = bytearray()
            elif verb == "STARTTLS" and said.startswith("220"):
                self.transport.startTLS(self.factory.tls)
            elif verb == "QUIT" and said:
                self.transport.loseConnection()

    def _receive_content(self) -> None:
        if not self._content:
            self.act("CONTENT")
        looked_at = max(0, len(self._content) - 4)
        self._content += self._buffer
        self._buffer = b""
        if self._content.startswith(b".\r\n"):
            end = 0
        else:
            end = self._content.find(b"\r\n.\r\n", looked_at) + 2
            if end < 2:
                return
        self._buffer = bytes(self._content[end + 3 :])
        stuffed = bytes(self._content[:end])
        self._in_content = False
        unstuffed = stuffed.replace(b"\r\n..", b"\r\n.")
        self.factory.contents.append(unstuffed[1:] if unstuffed.startswith(b"..") else unstuffed)
        self.act("DOT")

    def connectionLost(self, reason: object = None) -> None:
        self.factory.sessions.discard(self)
        self.factory.closed += 1


class ScriptedServer(Factory):
    """The server: what it will do, and what it heard."""

    noisy = False
    protocol = ScriptedSession

    def __init__(self, **script: list[Action]) -> None:
        self.script = script
        self.heard: list[str] = []
        self.lines: list[str] = []
        self.contents: list[bytes] = []
        self.sessions: set[ScriptedSession] = set()
        self.connections = 0
        self.most_at_once = 0
        self.closed = 0
        self.tls: Any = None

    def buildProtocol(self, addr: object) -> ScriptedSession:
        session = ScriptedSession()
        session.factory = self
        self.sessions.add(session)
        self.connections += 1
        self.most_at_once = max(self.most_at_once, len(self.sessions))
        return session
