"""When things happened in a session, and until when the client must have done the next one."""

from __future__ import annotations

from typing import Final

from relaycluster.net.inbound_sessions import SessionLimits
from relaycluster.smtp.server_states import State

_CONTENT: Final = State.CONTENT
_CHUNK: Final = State.CHUNK
_IN_TRANSACTION: Final = frozenset({State.MAIL, State.RECIPIENTS, State.CHUNKS, State.FAILED})

Deadline = tuple[float, str, str]
"""The time; and the reason and the text of the reply when it has passed."""


class Times:
    """Times of one session in seconds, on the clock that its factory was given, and the octets of content since `content_at`."""

    __slots__ = (
        "asked_at",
        "content_at",
        "content_octets",
        "dot_at",
        "handshake_at",
        "heard_at",
        "mail_at",
        "opened_at",
        "said_at",
        "sink_paused_at",
    )

    def __init__(self, now: float) -> None:
        self.opened_at = self.heard_at = self.said_at = now
        self.asked_at = self.handshake_at = self.mail_at = self.content_at = self.sink_paused_at = self.dot_at = 0.0
        self.content_octets = 0

    def content_begins(self) -> None:
        """The client may send content: octets count from now on."""
        self.content_octets = 0
        self.content_at = self.heard_at

    def sink_resumed(self, now: float) -> None:
        """The time since `sink_paused_at` is not held against the client."""
        self.content_at += now - self.sink_paused_at
        self.mail_at += now - self.sink_paused_at
        self.heard_at = now

    def answered(self, now: float) -> None:
        """The time since `asked_at` is not held against the client either."""
        self.mail_at += now - self.asked_at
        self.heard_at = now

    def handshake_deadline(self, limits: SessionLimits, is_stressed: bool) -> Deadline:
        """For the whole TLS handshake."""
        seconds = min(limits.handshake_seconds, limits.stress_seconds) if is_stressed else limits.handshake_seconds
        return self.handshake_at + seconds, "tls_timeout", "Timeout in the TLS handshake"

    def deadline(self, limits: SessionLimits, is_stressed: bool, state: State, takes_content: bool) -> Deadline:
        """For the next thing that the client has to do; `takes_content` when the octets of a chunk go into a message, and are not
        those of a refused one."""
        if state is _CONTENT or (state is _CHUNK and takes_content):
            rate = limits.minimum_data_rate
            earned = self.content_octets / rate if rate > 0 else float("inf")
            return min(
                (self.heard_at + limits.data_timeout_seconds, "data_timeout", "Timeout while receiving content"),
                (self.mail_at + limits.transaction_seconds, "transaction_time", "Transaction takes too long"),
                (self.content_at + limits.data_rate_grace_seconds + earned, "data_rate", "Content comes too slowly"),
            )
        seconds = limits.command_timeout_seconds
        if is_stressed:
            seconds = min(seconds, limits.stress_seconds)
        idle = (self.said_at + seconds, "command_timeout", "Timeout while waiting for a command")
        if state in _IN_TRANSACTION:
            over = (self.mail_at + limits.transaction_seconds, "transaction_time", "Transaction takes too long")
            return min(idle, over)
        return idle
