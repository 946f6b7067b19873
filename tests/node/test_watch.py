"""Watched files: a change is taken once, when it is complete; what is wrong is told once and changes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock

from relaycluster.events import EventLog
from relaycluster.interfaces import FileTrouble
from relaycluster.metrics import Metrics
from relaycluster.node.watch import LOOK_SECONDS, FileWatch


class World:
    """A watch over files in a directory, with what it told and what was loaded."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.written: list[bytes] = []
        self.metrics = Metrics(CollectorRegistry(), version="1")
        self.watch = FileWatch(self.clock, self.metrics, EventLog(self.written.append, lambda: 0.0))
        self.watch.start()
        self.loaded: list[str] = []

    def path(self, name: str) -> Path:
        return self.directory / name

    def load_of(self, *names: str) -> Callable[[], None]:
        """A loader that refuses what holds "bad", in line 3."""

        def load() -> None:
            text = "|".join(self.path(name).read_text() for name in names)
            if "bad" in text:
                raise FileTrouble(str(self.path(names[-1])), 3, "it is bad; make it good")
            self.loaded.append(text)

        return load

    def begin(self, what: Any, *names: str) -> None:
        for name in names:
            self.path(name).write_text("first")
        self.watch.watch(what, [str(self.path(name)) for name in names], self.load_of(*names))

    def looks(self, times: int) -> None:
        for _ in range(times):
            self.clock.advance(LOOK_SECONDS)

    def told(self) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in self.written]
        self.written.clear()
        return events

    def count(self, what: Any, result: Any) -> float:
        return self.metrics.file_reloads[what, result].value


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_change_is_taken_at_the_second_look_that_finds_it_so(world: World) -> None:
    """One read, one event and one count for a change; none while nothing changes."""
    world.begin("users", "users")
    assert world.loaded == ["first"]
    world.looks(3)
    assert world.loaded == ["first"]
    world.path("users").write_text("the second")
    world.looks(1)
    assert world.loaded == ["first"]
    world.looks(1)
    assert world.loaded == ["first", "the second"]
    world.looks(5)
    assert world.loaded == ["first", "the second"]
    (event,) = world.told()
    assert (event["event"], event["paths"], event["what"]) == ("file_reloaded", [str(world.path("users"))], "users")
    assert (world.count("users", "applied"), world.count("users", "refused")) == (1, 0)


def test_a_file_that_is_being_written_is_not_read(world: World) -> None:
    """While each look finds more of it, it waits; the whole of it is read, once."""
    world.begin("aliases", "aliases")
    with world.path("aliases").open("w") as file:
        for number in range(5):
            file.write(f"piece {number} ")
            file.flush()
            world.looks(1)
        assert world.loaded == ["first"]
    world.looks(2)
    assert world.loaded[1:] == ["piece 0 piece 1 piece 2 piece 3 piece 4 "]


def test_a_file_that_changes_while_it_is_read_is_read_again(world: World) -> None:
    """What was half old and half new does not stay."""
    world.begin("users", "users")

    def load() -> None:
        world.loaded.append(world.path("users").read_text())
        if len(world.loaded) == 3:
            world.path("users").write_text("the fourth")

    world.watch.watch("users", [str(world.path("users"))], load)
    world.path("users").write_text("the third")
    world.looks(2)
    assert world.loaded[2:] == ["the third"]
    world.looks(2)
    assert world.loaded[2:] == ["the third", "the fourth"]


def test_a_renamed_file_is_seen_however_alike_it_is(world: World) -> None:
    """The same size and the same times, another file: as an atomic replacement by `cp -p` and `mv` leaves it."""
    world.begin("users", "users")
    new, old = world.path("new"), world.path("users")
    new.write_text("other")
    os.utime(new, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
    new.rename(old)
    world.looks(2)
    assert world.loaded == ["first", "other"]


def test_what_is_wrong_is_told_once_for_each_change(world: World) -> None:
    """File, line and reason; nothing is loaded until it is mended, and then at once."""
    world.begin("dkim", "key")
    world.path("key").write_text("bad")
    world.looks(10)
    (event,) = world.told()
    assert (event["event"], event["severity"], event["path"], event["line"]) == (
        "file_refused",
        "warning",
        str(world.path("key")),
        3,
    )
    assert event["reason"] == "it is bad; make it good"
    world.path("key").write_text("bad again")
    world.looks(2)
    world.path("key").write_text("good")
    world.looks(2)
    assert [event["event"] for event in world.told()] == ["file_refused", "file_reloaded"]
    assert world.loaded == ["first", "good"]
    assert (world.count("dkim", "applied"), world.count("dkim", "refused")) == (1, 2)


def test_a_file_that_is_gone_is_refused_and_found_again(world: World) -> None:
    """Also a way to replace a file: remove it, and write a new one later. The reason has no traceback."""
    world.begin("users", "users")
    world.path("users").unlink()
    world.looks(5)
    (event,) = world.told()
    assert (event["event"], event["reason"]) == ("file_refused", "cannot be read: No such file or directory")
    assert event["path"] == str(world.path("users"))
    world.path("users").write_text("back")
    world.looks(2)
    assert world.loaded == ["first", "back"]


def test_a_pair_is_read_when_both_are_there(world: World) -> None:
    """A certificate and its key are replaced one after the other, within seconds, without a refusal between."""
    world.begin("certificate", "chain", "key")
    world.path("chain").write_text("new chain")
    world.looks(1)
    world.path("key").write_text("new key")
    world.looks(2)
    assert world.loaded == ["first|first", "new chain|new key"]
    (event,) = world.told()
    assert event["paths"] == [str(world.path("chain")), str(world.path("key"))]


def test_the_operator_need_not_wait(world: World) -> None:
    """SIGHUP reads what changed at once, and says again what is still wrong; what is unchanged and right is not read."""
    world.begin("users", "users")
    world.begin("aliases", "aliases")
    world.path("users").write_text("bad")
    world.watch.look_now()
    world.watch.look_now()
    assert [(event["event"], event["what"]) for event in world.told()] == [("file_refused", "users")] * 2
    assert world.loaded == ["first", "first"]
    world.path("users").write_text("good")
    world.watch.look_now()
    assert world.loaded == ["first", "first", "good"]
    world.looks(3)
    assert len(world.loaded) == 3


def test_the_cure_may_be_a_permission(world: World) -> None:
    """`chmod` alone changes neither content nor time, and is noticed."""
    world.begin("users", "users")
    os.chmod(world.path("users"), 0o600)
    world.looks(2)
    assert len(world.loaded) == 2


def test_trouble_at_the_start_is_the_callers(world: World) -> None:
    """A node does not start with a wrong file; a reload that names a wrong one leaves what was watched."""
    world.path("wrong").write_text("bad")
    with pytest.raises(FileTrouble):
        world.watch.watch("users", [str(world.path("wrong"))], world.load_of("wrong"))
    world.begin("users", "users")
    with pytest.raises(FileTrouble):
        world.watch.watch("users", [str(world.path("wrong"))], world.load_of("wrong"))
    world.path("users").write_text("still watched")
    world.looks(2)
    assert world.loaded == ["first", "still watched"]
    world.watch.forget("users")
    world.path("users").write_text("no more")
    world.looks(2)
    assert len(world.loaded) == 2


def test_a_bug_in_a_loader_stops_nothing(world: World) -> None:
    """It is told with its traceback, the file counts as refused, and other files are still watched."""
    world.begin("aliases", "aliases")
    broken = False

    def load() -> None:
        if broken:
            raise KeyError("oops")

    world.watch.watch("dkim", [str(world.path("aliases"))], load)
    broken = True
    world.path("aliases").write_text("more")
    world.looks(2)
    events = [event["event"] for event in world.told()]
    assert sorted(events) == ["error", "file_refused", "file_reloaded"]
    assert world.loaded == ["first", "more"]
    world.looks(2)
    assert world.told() == []


def test_it_stops(world: World) -> None:
    """No timer is left behind, and starting twice makes no second one."""
    world.watch.start()
    assert len(world.clock.getDelayedCalls()) == 1
    world.watch.stop()
    world.watch.stop()
    assert world.clock.getDelayedCalls() == []
