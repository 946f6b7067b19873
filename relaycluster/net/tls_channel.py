"""One inbound connection's TLS without its socket: what arrives goes in and comes out as octets, and back.

Twisted's TLS transport is not used on this side: it tells the protocol of the connection before the handshake and not after it, it
puts every write off to the reactor's next turn, so that the end of the handshake and the greeting leave in two segments, and it costs
half as much again for each command. Whoever has a channel sends nothing past it: `Wire` sees to that.
"""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL

from relaycluster.mail.session import TLSFacts
from relaycluster.net import tls

_RECORD_OCTETS: Final = 16384
"""The longest that a record holds (RFC 8446 5.1)."""

_FRAMING_OCTETS: Final = 2048
"""More than what goes in front of and around one record: two tickets, header, tag."""

_FED_OCTETS: Final = 8192
"""So much is fed at once. OpenSSL's buffer never shrinks again: fed whole reads, a session that carried one large message would
keep as much as three idle ones. Half as much would save 6 KiB more and cost twice the time."""


class TLSTrouble(Exception):
    """TLS can not go on; the text says why, fit for a log. What `outgoing` gives (an alert) should still be sent."""


class TLSChannel:
    """The server's side of one TLS connection.

    `has_begun` tells whether anything came, `is_open` whether the handshake is over; `peer_closed` is true once the client said that it sends no more (close_notify,
    RFC 8446 6.1).
    """

    __slots__ = ("_connection", "_header", "_missing", "has_begun", "is_open", "peer_closed")

    def __init__(self, connection: SSL.Connection) -> None:
        connection.set_accept_state()
        self._connection = connection
        self._missing = 0  # octets of the last record that have to come
        self._header = b""  # the beginning of the next one, while even its length is not known
        self.has_begun = self.is_open = False
        self.peer_closed = False

    def receive(self, data: bytes) -> bytes:
        """Octets from the socket; returns what they say, b"" while the handshake lasts. Raises `TLSTrouble`."""
        records = self._whole_records(data)
        if len(data) <= _FED_OCTETS:
            return self._receive(data, records)
        pieces = (data[at : at + _FED_OCTETS] for at in range(0, len(data), _FED_OCTETS))
        return b"".join([self._receive(piece, 0) for piece in pieces])

    def encrypt(self, data: bytes) -> bytes:
        """What to write to the socket to say `data`; with whatever waited to be sent in front of it."""
        connection = self._connection
        sent = connection.send(data)
        if sent == len(data) and sent < _RECORD_OCTETS:
            return self._written(sent + _FRAMING_OCTETS)
        pieces = [self.outgoing()]
        while sent < len(data):  # a record at a time
            sent += connection.send(data[sent : sent + _RECORD_OCTETS])
            pieces.append(self.outgoing())
        return b"".join(pieces)

    def outgoing(self) -> bytes:
        """What waits to be sent: handshake messages, tickets, alerts."""
        return self._written(2 * _RECORD_OCTETS)

    def close(self, last: bytes = b"") -> bytes:
        """What to write last, to say `last` and then nothing more: close_notify tells the client that nothing was cut off. After it
        nothing is encrypted. Nothing while the handshake lasts."""
        if not self.is_open:
            return b""
        connection = self._connection
        try:
            sent = 0
            while sent < len(last):
                sent += connection.send(last[sent : sent + _RECORD_OCTETS])
            connection.shutdown()
        except SSL.Error:  # broken already
            return b""
        return self._written(2 * _RECORD_OCTETS)

    def facts(self) -> TLSFacts:
        """What was negotiated. Only when it is open."""
        return tls.facts(self._connection)

    def _written(self, expected: int) -> bytes:
        """All that waits to be sent, at one go if it is shorter than `expected`: to ask once more costs as much as the first time."""
        try:
            data = self._connection.bio_read(expected)
            if len(data) < expected:
                return data
            pieces = [data]
        except SSL.WantReadError:
            return b""
        try:
            while True:
                pieces.append(self._connection.bio_read(2 * _RECORD_OCTETS))
        except SSL.WantReadError:
            return b"".join(pieces)

    def _whole_records(self, data: bytes) -> int:
        """How many records `data` is; 0 when it does not begin with one and end with one. To be asked about all that comes, since it keeps
        count of where records end: five octets of header, the last two of them the length of what follows (RFC 8446 5.1)."""
        begins = not self._missing and not self._header
        if self._header:
            data = self._header + data
            self._header = b""
        records, at, end = 0, self._missing, len(data)
        while at + 5 <= end:
            at += 5 + (data[at + 3] << 8 | data[at + 4])
            records += 1
        if at < end:
            self._header = data[at:]
            self._missing = 0
            return 0
        self._missing = at - end
        return records if begins and at == end else 0

    def _receive(self, data: bytes, records: int) -> bytes:
        """What so many whole records say, or, with 0, whatever is there."""
        self.has_begun = True
        connection = self._connection
        pieces: list[bytes] = []
        try:
            connection.bio_write(data)
            if not self.is_open:
                connection.do_handshake()
                self.is_open = True
                records = 0  # some of them were the handshake's
            longest = len(data) if records else _RECORD_OCTETS
            while True:
                pieces.append(connection.recv(longest))
                records -= 1
                if not records:  # to hear that there is no more would cost as much again
                    break
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            if not self.is_open:
                raise TLSTrouble("the client gave up the handshake") from None
            self.peer_closed = True
        except SSL.Error as error:
            raise TLSTrouble(tls.reason(error)) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
