"""A TLS client without a socket, from the standard library's `ssl`: another implementation's eyes on our channel."""

from __future__ import annotations

import ssl
from contextlib import suppress

from relaycluster.net.tls_channel import TLSChannel


def client_context(ca_pem: bytes | None = None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client that trusts this authority, or anybody; that speaks this version only, or any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_pem is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


class MemoryClient:
    """One connection. `feed` takes what the server wrote, `take` gives what is to be written to it."""

    def __init__(self, context: ssl.SSLContext, name: str | None = None, session: ssl.SSLSession | None = None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name, session=session)
        self.is_open = False
        self.is_closed = False

    def feed(self, data: bytes) -> bytes:
        """From the server; returns what it says."""
        self._incoming.write(data)
        said = b""
        try:
            if not self.is_open:
                self.tls.do_handshake()
                self.is_open = True
            while True:
                piece = self.tls.read(65536)
                if not piece:
                    self.is_closed = True
                    return said
                said += piece
        except ssl.SSLWantReadError:
            return said
        except ssl.SSLZeroReturnError:
            self.is_closed = True
            return said

    def say(self, data: bytes) -> bytes:
        """Octets for the server that say this."""
        self.tls.write(data)
        return self.take()

    def close(self) -> bytes:
        """Octets for the server: close_notify."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.take()

    def take(self) -> bytes:
        """Octets for the server."""
        return self._outgoing.read()


def shake_hands(channel: TLSChannel, client: MemoryClient, cut: int = 1 << 20) -> None:
    """The whole handshake, in pieces of `cut` octets."""
    client.feed(b"")
    while True:
        wire = client.take()
        if not wire and client.is_open and channel.is_open:
            return
        for at in range(0, len(wire), cut):
            assert channel.receive(wire[at : at + cut]) == b""
        answer = channel.outgoing()
        assert wire or answer, "the handshake stands still"
        for at in range(0, len(answer), cut):
            assert client.feed(answer[at : at + cut]) == b""
