"""Log lines to a file descriptor, without ever waiting for it."""

from __future__ import annotations

import os
import select
from typing import Any

MOST_UNREAD_LOG = 4 << 20
LOG_AGAIN_SECONDS = 0.05


class LineWriter:
    """Writes log lines to standard output, together once a turn of the reactor, and never waits for whoever reads them: what a
    reader that has stopped leaves no room for is dropped, and counted."""

    def __init__(self, reactor: Any, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._rest = b""
        self._dropped = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def __call__(self, line: bytes) -> None:
        if not self._reactor.running:
            self._lines.append(line)
            self.flush()
        elif len(self._rest) > MOST_UNREAD_LOG:
            self._dropped += 1
        else:
            if not self._lines and not self._rest:
                self._reactor.callLater(0, self.flush)
            self._lines.append(line)

    def flush(self) -> None:
        """Write what there is, as far as it is taken at once."""
        data = self._rest + b"".join(self._lines)
        self._lines.clear()
        at = 0
        try:
            while at < len(data) and self._poll.poll(0):
                # What is writable takes so much without blocking (POSIX: PIPE_BUF).
                at += os.write(self._descriptor, data[at : at + select.PIPE_BUF])
        except OSError:
            at = len(data)  # nobody listens any more: mail goes on
        self._rest = data[at:]
        if self._rest:
            if self._reactor.running:
                self._reactor.callLater(LOG_AGAIN_SECONDS, self.flush)
        elif self._dropped:
            text = f"{self._dropped} log lines were dropped: nobody read them"
            self._dropped = 0
            self._lines.append(b'{"event":"warning","severity":"warning","text":"%s","place":"log"}\n' % text.encode())
            self._reactor.callLater(0, self.flush)
