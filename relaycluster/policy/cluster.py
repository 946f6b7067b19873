"""The cluster as one snapshot shows it: members, incarnations, who is dead, and who owns a partition."""

from __future__ import annotations

from attrs import field, frozen


@frozen
class Member:
    """A living node. `incarnation` numbers this life of it; `id` is the name that stays over restarts; `key` identifies its
    state directory; `roles` are "edge" and "delivery"; `draining` once it is leaving and takes no partitions."""

    incarnation: int
    id: str
    key: str
    roles: tuple[str, ...]
    weight: float = 1.0
    hostname: str = ""
    draining: bool = False


@frozen
class Snapshot:
    """The membership at one instant. `version` rises with each change; `next_incarnation` has not been given out yet;
    `offset_ms` is what queue time is ahead of Redis `TIME`; `cluster` identifies this cluster's life in this Redis; `suspensions` is the
    version of the table of suspensions, which rises with each change of it."""

    version: int
    next_incarnation: int
    members: tuple[Member, ...]
    offset_ms: int = 0
    cluster: str = ""
    suspensions: int = 0
    _alive: frozenset[int] = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_alive", frozenset(member.incarnation for member in self.members))

    def is_dead(self, incarnation: int) -> bool:
        """Whether this incarnation lived and ended. One that this snapshot is too old to know is not dead."""
        return incarnation < self.next_incarnation and incarnation not in self._alive


@frozen
class Ownership:
    """A proven claim on a partition: who, and the fence of this tenure. `text` is the record as it is stored."""

    partition: int
    incarnation: int
    fence: int
    text: bytes = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "text", b"%d:%d" % (self.incarnation, self.fence))
