"""What this process knows of the destinations that it sends to: one window for each, shared by the lanes that lead there."""

from __future__ import annotations

from weakref import WeakValueDictionary

from relaycluster.mail import outcome
from relaycluster.policy.window import Window


class Reach:
    """A destination's window as it stands. `learns` tells the hot path whether answers matter, `troubled` whether it is
    parked, resting, or was; `outcome` is what the last
    connection that could not be made means for mail."""

    __slots__ = ("__weakref__", "learns", "outcome", "troubled", "window")

    def __init__(self, maximum: int) -> None:
        self.outcome: outcome.Deferred | outcome.Failed | None = None
        self.become(Window(maximum))

    def become(self, window: Window) -> None:
        """What is known now."""
        self.window = window
        self.learns = window.learns
        self.troubled = window.is_troubled

    def answered(self) -> None:
        """A transaction had its replies."""
        self.become(self.window.answered())


class Reaches:
    """The windows by name: a domain, or a limit whose hosts all of its domains share. A window is kept as long as a lane uses it, or what
    was learned matters."""

    def __init__(self) -> None:
        self._of: WeakValueDictionary[str, Reach] = WeakValueDictionary()
        self._kept: list[Reach] = []

    def of(self, name: str, maximum: int) -> Reach:
        """The one of this name."""
        found = self._of.get(name)
        if found is None:
            found = self._of[name] = Reach(maximum)
        elif found.window.maximum != maximum:
            found.become(found.window.with_maximum(maximum))
        return found

    def find(self, name: str) -> Reach | None:
        """The one of this name, if anybody uses it."""
        return self._of.get(name)

    def keep(self, now_seconds: float) -> None:
        """Lanes are about to be forgotten: keep what the next one of the same name should know, and nothing else."""
        self._kept = [reach for reach in self._of.values() if reach.window.matters(now_seconds)]
