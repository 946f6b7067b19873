"""A session's way to its client: the transport, and TLS once it has begun. Nothing else writes to the transport."""

from __future__ import annotations

from typing import Any

from relaycluster.net.immediate import write_now
from relaycluster.net.tls_channel import TLSChannel


class Wire:
    """One connection. From `start_tls` on there is no way to write in clear.

    `channel` is its TLS, None in clear. While `is_shaking_hands`, nothing can be sent.
    """

    __slots__ = ("_transport", "channel", "is_shaking_hands")

    def __init__(self, transport: Any) -> None:
        """`transport` is a stream transport: TCP, or a test's."""
        self._transport = transport
        self.channel: TLSChannel | None = None
        self.is_shaking_hands = False

    def send(self, data: bytes) -> None:
        """Say this to the client."""
        channel = self.channel
        write_now(self._transport, data if channel is None else channel.encrypt(data))

    def start_tls(self, channel: TLSChannel) -> None:
        """What comes from now on belongs to TLS."""
        self.channel = channel
        self.is_shaking_hands = True

    def flush(self) -> None:
        """Write what TLS itself has to say: handshake, tickets, alerts."""
        if self.channel is not None:
            waiting = self.channel.outgoing()
            if waiting:
                write_now(self._transport, waiting)

    def close(self, last: bytes = b"") -> None:
        """Say `last`, and close when everything is written; under TLS with close_notify, so that the client knows that this was all."""
        if self.channel is not None:
            last = self.channel.close(last)
        if last:
            write_now(self._transport, last)
        self._transport.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abortConnection()
