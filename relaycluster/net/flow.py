"""Whether the other side keeps up with a long content, so that content of any size goes out in bounded memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


@implementer(IPushProducer)
class Flow:
    """Stands as the producer of a transport (TCP or TLS) while a long content is written to it: `open`, then `room` after
    each write, then `close`."""

    __slots__ = ("_drained", "_is_lost", "_is_open", "_is_paused", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._is_open = False
        self._is_paused = False
        self._is_lost = False
        self._drained: Deferred[None] | None = None

    def open(self) -> None:
        """The content begins."""
        self._is_open = True
        self._transport.registerProducer(self, True)

    def close(self) -> None:
        """The content ended, or will not go on."""
        if self._is_open and not self._is_lost:
            self._is_open = self._is_paused = False
            self._transport.unregisterProducer()

    def room(self) -> Deferred[None] | None:
        """None when more may be written, otherwise what fires when more may be written.

        It never fires when the connection is lost before: the protocol's `connectionLost` tells of that, and whoever
        waits here is to be cancelled there. Going on would be to write into a connection that is being torn down.
        """
        if not self._is_paused:
            return None
        self._drained = Deferred()
        return self._drained

    def pauseProducing(self) -> None:
        """See `IPushProducer`: much waits to be sent."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """See `IPushProducer`: all was sent."""
        self._is_paused = False
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.callback(None)

    def stopProducing(self) -> None:
        """See `IPushProducer`: the connection is lost."""
        self._is_paused = self._is_lost = True
