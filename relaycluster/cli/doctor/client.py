"""An SMTP client that says exactly what it is told to, for looking at servers. Blocking; one connection each."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from attrs import frozen

LONGEST_REPLY_OCTETS = 65536
NAME = "doctor.invalid"


class NoReply(OSError):
    """The server closed the connection, or said nothing in time, or no SMTP."""


@frozen
class Said:
    """A reply: its code, and the text of its lines."""

    code: int
    lines: Sequence[str]

    def __str__(self) -> str:
        return f"{self.code} {' / '.join(self.lines)}"[:200]


class ProbingClient:
    """A connection, from `with` to the end of the block.

    `source` is the address to connect from, empty for the system's choice. `preface` goes out first, before TLS and before
    anything is read: a PROXY header. With `tls` the session is under TLS from the first octet.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        source: str = "",
        preface: bytes = b"",
        tls: ssl.SSLContext | None = None,
        name: str = "",
        timeout_seconds: float = 10.0,
    ) -> None:
        self._address = (host, port)
        self._source = (source, 0) if source else None
        self._preface = preface
        self._tls = tls
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._received = b""

    def __enter__(self) -> Self:
        self.socket = socket.create_connection(self._address, self._timeout_seconds, self._source)
        try:
            if self._preface:
                self.socket.sendall(self._preface)
            if self._tls is not None:
                self.start_tls(self._tls)
        except BaseException:
            self.socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def start_tls(self, context: ssl.SSLContext) -> None:
        """The handshake. What was received before it is forgotten, not believed. Raises `ssl.SSLError` and `OSError`."""
        self._received = b""
        self.socket = context.wrap_socket(self.socket, server_hostname=self._name or None)

    def send(self, data: bytes) -> None:
        """Octets as they are."""
        self.socket.sendall(data)

    def reply(self) -> Said:
        """The next reply. Raises `NoReply`."""
        lines: list[str] = []
        while True:
            line = self._line()
            if len(line) < 3 or not line[:3].isdigit():
                raise NoReply(f"not SMTP: {line[:60]!r}")
            lines.append(line[4:].decode("utf-8", "replace"))
            if line[3:4] != b"-":
                return Said(int(line[:3]), lines)

    def command(self, text: str) -> Said:
        """A command, without its CRLF, and the reply to it."""
        self.send(text.encode() + b"\r\n")
        return self.reply()

    def ehlo(self, name: str = NAME) -> dict[str, str]:
        """The keywords of the server's extensions, in upper case, with their parameters; empty when EHLO is refused."""
        said = self.command(f"EHLO {name}")
        if said.code != 250:
            return {}
        words = (line.partition(" ") for line in said.lines[1:])
        return {keyword.upper(): parameters for keyword, _, parameters in words}

    def _line(self) -> bytes:
        while b"\n" not in self._received:
            if len(self._received) > LONGEST_REPLY_OCTETS:
                raise NoReply("a reply without end")
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                raise NoReply(f"no reply within {self._timeout_seconds:g} s") from None
            except OSError as error:
                raise NoReply(f"connection lost: {error.strerror or error}") from None
            if not data:
                raise NoReply("connection closed")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.rstrip(b"\r")


def proxy_header(client: str, server: str, port: int) -> bytes:
    """The PROXY protocol's first version, in the name of a client."""
    if ip_address(client).version != ip_address(server).version:
        server = "::" if ":" in client else "0.0.0.0"
    family = "TCP6" if ":" in client else "TCP4"
    return f"PROXY {family} {client} {server} 40000 {port}\r\n".encode()
