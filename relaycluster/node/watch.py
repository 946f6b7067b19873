"""Files that the configuration names are read again when they change; what can not be used changes nothing.

A file is never read while somebody writes it: what has changed must look the same at two looks in a row. A pair of files
(a certificate and its key) is one subject, so that it is read when both are there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from attrs import define
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from relaycluster import events
from relaycluster.events import EventLog
from relaycluster.interfaces import FileTrouble
from relaycluster.metrics import Metrics, WatchedFile

LOOK_SECONDS: Final = 2.0

_Look = tuple[tuple[int, ...] | None, ...]
"""What tells whether files are the same as before; None for one that is not there."""


@define
class _Subject:
    """Files that are read together. `tried` is how they looked when they were last read, `seen` at the last look."""

    paths: tuple[str, ...]
    load: Callable[[], object]
    tried: _Look
    seen: _Look
    refused: bool = False


class FileWatch:
    """Watches files, and tells what came of each change in one event and one count."""

    def __init__(
        self, clock: IReactorTime, metrics: Metrics, log: EventLog, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self._look_seconds = look_seconds
        self._subjects: dict[WatchedFile, _Subject] = {}
        self._next_look: IDelayedCall | None = None

    def watch(self, what: WatchedFile, paths: Sequence[str], load: Callable[[], object]) -> None:
        """Call `load` now, and again whenever one of the files has changed; in place of what was watched as `what` before.

        `load` reads all of `paths`, takes all that they say or nothing, and raises `FileTrouble` or `OSError` when they can not be
        used. What it raises now goes to the caller, and what was watched before is still watched.
        """
        look = _look(paths)  # before: a change while they are read is seen later
        load()
        self._subjects[what] = _Subject(tuple(paths), load, look, look)

    def forget(self, what: WatchedFile) -> None:
        """Watch it no more."""
        self._subjects.pop(what, None)

    def start(self) -> None:
        """Look every few seconds."""
        if self._next_look is None:
            self._next_look = self._clock.callLater(self._look_seconds, self._look_again)

    def stop(self) -> None:
        """Look no more."""
        if self._next_look is not None and self._next_look.active():
            self._next_look.cancel()
        self._next_look = None

    def look(self) -> None:
        """Read what has changed since it was read last, and has not since the last look."""
        for what, subject in self._subjects.items():
            look = _look(subject.paths)
            if look != subject.tried and look == subject.seen:
                self._read(what, subject, look)
            subject.seen = look

    def look_now(self) -> None:
        """The operator says that the files are complete (SIGHUP): read what has changed, and once more what was refused."""
        for what, subject in self._subjects.items():
            look = subject.seen = _look(subject.paths)
            if look != subject.tried or subject.refused:
                self._read(what, subject, look)

    def _look_again(self) -> None:
        self._next_look = self._clock.callLater(self._look_seconds, self._look_again)
        self.look()

    def _read(self, what: WatchedFile, subject: _Subject, look: _Look) -> None:
        # Whatever comes of it, these files are not read again until they change; also when they change meanwhile.
        changed = [path for path, was, now in zip(subject.paths, subject.tried, look, strict=True) if was != now]
        subject.tried = look
        subject.refused = True
        try:
            subject.load()
        except FileTrouble as trouble:
            self._refused(what, trouble.path, trouble.line, trouble.reason)
        except OSError as error:
            path = error.filename if isinstance(error.filename, str) else ", ".join(subject.paths)
            self._refused(what, path, 0, f"cannot be read: {os.strerror(error.errno or 0)}")
        except Exception as error:
            self._log.emit(events.Error.of(error, f"reading {what}"))
            self._refused(what, ", ".join(subject.paths), 0, f"{type(error).__name__}: {error}")
        else:
            subject.refused = False
            self._metrics.file_reloads[what, "applied"].inc()
            self._log.emit(events.FileReloaded(tuple(changed) or subject.paths, what))

    def _refused(self, what: WatchedFile, path: str, line: int, reason: str) -> None:
        self._metrics.file_reloads[what, "refused"].inc()
        self._log.emit(events.FileRefused(path, what, line, reason))


def _look(paths: Sequence[str]) -> _Look:
    return tuple(map(_look_at, paths))


def _look_at(path: str) -> tuple[int, ...] | None:
    """Where a file lies and when it changed. `st_ctime_ns` is among it for those that keep the time of what they copy, and for
    changes of the permissions alone, which may be the cure."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
