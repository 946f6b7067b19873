"""On the PYTHONPATH of a node, this makes it wait seconds for remote servers where RFC 5321 4.5.3.2 has minutes.

So that a scenario can have a server that hangs, with the node that everybody runs.
"""

from __future__ import annotations

from typing import Any

from relaycluster.net.target import OutboundSettings, Timeouts

IMPATIENT = Timeouts(
    connect_seconds=2,
    greeting_seconds=3,
    ehlo_seconds=3,
    tls_seconds=3,
    mail_seconds=3,
    rcpt_seconds=3,
    data_seconds=3,
    content_seconds=3,
    final_dot_seconds=3,
    quit_seconds=1,
)

_init: Any = OutboundSettings.__init__


def _impatient(self: OutboundSettings, *words: Any, **named: Any) -> None:
    _init(self, *words, **{"timeouts": IMPATIENT, **named})


OutboundSettings.__init__ = _impatient  # type: ignore[method-assign]
