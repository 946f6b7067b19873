"""Every event, declared once with its fields: what the operator, the trace and webhooks read.

An event is told once, when something changed or ended. A field is a text, a number or a list of texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import attrs
from attrs import define, field, setters
from twisted.python.failure import Failure

Severity = Literal["info", "warning", "error"]

_EventType = TypeVar("_EventType", bound="type[Event]")


class Event:
    """One thing that happened. Its name is the class's in snake case; the docstring says when it is told.

    Events are frozen by their setters, not by `attrs.frozen`, whose `__init__` takes four times as long: there are
    several for each message.
    """

    __slots__ = ()
    name: ClassVar[str] = ""
    severity: ClassVar[Severity] = "info"


EVENTS: dict[str, type[Event]] = {}


def _event(severity: Severity = "info") -> Callable[[_EventType], _EventType]:
    """Makes a class of fields an event, under its name."""

    def register(cls: _EventType) -> _EventType:
        words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in cls.__name__)
        cls.name, cls.severity = words[1:], severity
        EVENTS[cls.name] = cls
        return cls

    return register


def _field(doc: str, default: Any = attrs.NOTHING) -> Any:
    return field(default=default, metadata={"doc": doc})


def _nothing(doc: str) -> Any:
    """A text that may be empty."""
    return _field(doc, "")


# The node.


@_event()
@define(on_setattr=setters.frozen)
class NodeStarted(Event):
    """The process runs; no listener is open yet."""

    node: str = _field("the node's name")
    version: str = _field("the release")
    roles: tuple[str, ...] = _field("what the node does")
    pid: int = _field("the process id")


@_event()
@define(on_setattr=setters.frozen)
class NodeStopping(Event):
    """The node was told to stop and drains."""

    why: str = _field("the signal or the failure")
    deadline_seconds: float = _field("how long it may take")


@_event()
@define(on_setattr=setters.frozen)
class NodeStopped(Event):
    """The node has left; nothing follows."""

    seconds: float = _field("how long the drain took")
    unfinished: int = _field("attempts that the deadline cut off; they stay queued", 0)


@_event()
@define(on_setattr=setters.frozen)
class ListenerReady(Event):
    """A socket accepts connections."""

    listener: str = _field("the configured address")
    address: str = _field("the address that it is bound to")
    mode: str = _field("`submission`, `mx` or `http`")


@_event()
@define(on_setattr=setters.frozen)
class ConfigLoaded(Event):
    """The configuration was read and holds from now on."""

    source: str = _field("the file")


@_event("warning")
@define(on_setattr=setters.frozen)
class ConfigRefused(Event):
    """The configuration was read again and is wrong; the old one stays."""

    source: str = _field("the file")
    reasons: tuple[str, ...] = _field("what is wrong, as `check-config` says it")


@_event()
@define(on_setattr=setters.frozen)
class FileReloaded(Event):
    """Files that the configuration names have changed, and what they say holds from now on. Sessions that are open go on."""

    paths: tuple[str, ...] = _field("the files that changed")
    what: str = _field("`certificate`, `dkim`, `users` or `aliases`")


@_event("warning")
@define(on_setattr=setters.frozen)
class FileRefused(Event):
    """A file that the configuration names has changed and can not be used; what it said before stays. Told once for each
    change of the file."""

    path: str = _field("the file")
    what: str = _field("`certificate`, `dkim`, `users` or `aliases`")
    line: int = _field("where in it; 0 when it is not about a line")
    reason: str = _field("what is wrong, and the fix")


# Accepting.


@_event()
@define(on_setattr=setters.frozen)
class SessionClosed(Event):
    """An inbound session ended: one line for each."""

    session: str = _field("the session's id, unique in the life of the process")
    listener: str = _field("the configured address")
    peer: str = _field("the client's address and port")
    helo: str = _nothing("what it called itself")
    tls: str = _nothing("version and cipher")
    user: str = _nothing("who authenticated")
    messages: int = _field("messages that were queued", 0)
    refused: int = _field("commands that were refused", 0)
    seconds: float = _field("how long it lasted", 0.0)
    why: str = _nothing("how it ended: `quit`, `lost`, `timeout`, `tls`, or the reply that ended it")
    via: str = _nothing("the balancer whose PROXY header told who the client is")


@_event()
@define(on_setattr=setters.frozen)
class MessageQueued(Event):
    """A message exists in the queue as durably as was configured; its client gets the 250: one line for each."""

    id: str = _field("the queue id")
    session: str = _field("the session's id; empty for a notice of our own")
    peer: str = _field("the client's address")
    user: str = _field("who authenticated")
    reverse_path: str = _field("the sender; empty for `<>`")
    recipients: int = _field("how many recipients")
    items: int = _field("how many recipient domains, each of which is an item")
    size: int = _field("octets of content, with our trace fields")
    reply: str = _field("what the client was answered")
    tls: str = _nothing("version and cipher of the session")
    via: str = _nothing("the balancer whose PROXY header told who the client is")
    message_class: str = _nothing("`urgent`, `normal` or `bulk`")
    signed: tuple[str, ...] = _field("the DKIM signatures that it got, each as `selector._domainkey.domain`", ())


@_event()
@define(on_setattr=setters.frozen)
class MessageRefused(Event):
    """A message, a recipient or a session was answered with a negative reply."""

    session: str = _field("the session's id")
    peer: str = _field("the client's address")
    stage: str = _field("the command that was answered")
    reply: str = _field("the reply")
    user: str = _nothing("who authenticated")
    reverse_path: str = _nothing("the sender, where there was one")
    forward_path: str = _nothing("the recipient, where it was about one")
    id: str = _nothing("the queue id, where one had been given")
    tls: str = _nothing("version and cipher of the session")
    via: str = _nothing("the balancer whose PROXY header told who the client is")
    size: int = _field("octets of content, where there was some", 0)


@_event("warning")
@define(on_setattr=setters.frozen)
class AuthFailed(Event):
    """A login was refused. It never holds the password; the name is what the client sent, whether or not there is such a user."""

    session: str = _field("the session's id")
    peer: str = _field("the client's address")
    user: str = _field("the name that was tried")
    mechanism: str = _field("`PLAIN` or `LOGIN`")
    why: str = _field(
        "`credentials`, `identity` (to act as somebody else), `backoff` (refused unseen) or `unavailable`"
    )
    via: str = _nothing("the balancer whose PROXY header told who the client is")
    tls: str = _nothing("version and cipher of the session")


@_event("warning")
@define(on_setattr=setters.frozen)
class AuthLockedOut(Event):
    """After several failed logins the next attempts of a client or for a user are refused unseen for a while, on all nodes."""

    session: str = _field("the id of the session with the last failure")
    peer: str = _field("its client's address")
    subject: str = _field("what is held back: a `pair` of user and address, an `address` or network, or a `user`")
    seconds: float = _field("for how long")
    via: str = _nothing("the balancer whose PROXY header told who the client is")


@_event("warning")
@define(on_setattr=setters.frozen)
class ProxyRefused(Event):
    """A connection to a listener with `proxy_protocol_from` was closed: no header came, a wrong one, or from a stranger."""

    listener: str = _field("the configured address")
    peer: str = _field("the address at the other end of the connection")
    why: str = _field("what was wrong")


@_event("warning")
@define(on_setattr=setters.frozen)
class StressBegan(Event):
    """Session slots run out (`limits.stress_at`): timeouts and errors are cut short until there is room."""

    sessions: int = _field("open sessions")
    limit: int = _field("`limits.connections`")


@_event()
@define(on_setattr=setters.frozen)
class StressEnded(Event):
    """There is room for sessions again; the configured timeouts hold."""

    sessions: int = _field("open sessions")
    limit: int = _field("`limits.connections`")


# Delivering.


@_event()
@define(on_setattr=setters.frozen)
class Attempt(Event):
    """One SMTP transaction with a host ended, or no connection to it could be made."""

    item: str = _field("the item's id")
    domain: str = _field("the recipient domain")
    host: str = _field("the host's name")
    address: str = _field("the address and port that were tried; empty when there was none")
    stage: str = _field("how far it came")
    tls: str = _field("version and cipher; empty in clear")
    seconds: float = _field("how long it took")
    reply: str = _field("the last reply, or what went wrong")


@_event()
@define(on_setattr=setters.frozen)
class Delivered(Event):
    """The next hop took responsibility for these recipients."""

    item: str = _field("the item's id")
    domain: str = _field("the recipient domain")
    recipients: tuple[str, ...] = _field("the recipients")
    host: str = _field("the host that took it")
    reply: str = _field("its reply")
    queue_seconds: float = _field("since our own 250")
    attempts: int = _field("how many attempts there were, this one included")


@_event()
@define(on_setattr=setters.frozen)
class Deferred(Event):
    """These recipients are tried again later."""

    item: str = _field("the item's id")
    domain: str = _field("the recipient domain")
    recipients: tuple[str, ...] = _field("the recipients")
    host: str = _field("the host that said so; empty when none did")
    stage: str = _field("where it was decided")
    reply: str = _field("the reply, or what went wrong")
    attempts: int = _field("how many attempts there were")
    delay_seconds: float = _field("until the next attempt")


@_event("warning")
@define(on_setattr=setters.frozen)
class Failed(Event):
    """These recipients are never tried again."""

    item: str = _field("the item's id")
    domain: str = _field("the recipient domain")
    recipients: tuple[str, ...] = _field("the recipients")
    host: str = _field("the host that said so; empty when none did")
    stage: str = _field("where it was decided")
    reply: str = _field("the reply, or what went wrong")
    bounce_class: str = _field("the kind of failure, as in `bounces_total`")
    attempts: int = _field("how many attempts there were")


@_event("warning")
@define(on_setattr=setters.frozen)
class Expired(Event):
    """These recipients were tried for as long as a message lives; a `failed` follows."""

    item: str = _field("the item's id")
    domain: str = _field("the recipient domain")
    recipients: tuple[str, ...] = _field("the recipients")
    queue_seconds: float = _field("since our own 250")
    attempts: int = _field("how many attempts there were")


@_event()
@define(on_setattr=setters.frozen)
class NoticeQueued(Event):
    """A delivery status notification was put into the queue."""

    id: str = _field("the notice's own queue id")
    item: str = _field("the item that it is about")
    kind: str = _field("`failed`, `delayed` or `relayed`")
    to: str = _field("the reverse-path that gets it")


@_event()
@define(on_setattr=setters.frozen)
class NoticeDropped(Event):
    """Nobody is told of a failure: the reverse-path is `<>` (RFC 5321 4.5.5), the sender asked not to be told (RFC 3461 4.1), or the
    notice could not be made."""

    item: str = _field("the item that it would be about")
    kind: str = _field("`failed` or `delayed`")
    why: str = _field("the reason")


@_event("warning")
@define(on_setattr=setters.frozen)
class PossibleDuplicate(Event):
    """An item may have been delivered before, without our knowing, and is tried again."""

    item: str = _field("the item's id")
    domain: str = _field("the recipient domain")
    why: str = _field("what was lost: a node, the connection after the final dot, or Redis")


@_event("warning")
@define(on_setattr=setters.frozen)
class ItemHeld(Event):
    """An item whose holders died too often waits for the operator."""

    item: str = _field("the item's id")
    why: str = _field("the reason")


# The operator.


@_event()
@define(on_setattr=setters.frozen)
class OperatorActed(Event):
    """An operator changed the queue; told by the owner of the partition, once."""

    verb: str = _field("`hold`, `release`, `requeue`, `requeue --reset`, `bounce`, `delete` or `flush`")
    subject: str = _field("the item's id, or the domain")
    who: str = _field("who it was: the user and the host of the command")
    why: str = _field("the reason that was given")
    at: str = _field("when it was done (UTC): the time of the line is when the owner told it")


@_event("warning")
@define(on_setattr=setters.frozen)
class DeliverySuspended(Event):
    """From here on this node sends nothing to these domains; told by each delivery node, also when it starts."""

    subject: str = _field("a domain, `*.suffix`, `limit:` and the name of a limit, or `*`")
    seconds: float = _field("for how long still; 0 until it is resumed")
    who: str = _field("the operator, or the rule")
    why: str = _field("the reason")


@_event()
@define(on_setattr=setters.frozen)
class DeliveryResumed(Event):
    """A suspension was ended before its time; told by each delivery node."""

    subject: str = _field("a domain, `*.suffix`, `limit:` and the name of a limit, or `*`")
    who: str = _field("who ended it")
    why: str = _field("the reason that was given")


# The cluster.


@_event()
@define(on_setattr=setters.frozen)
class PartitionsAcquired(Event):
    """This node owns more."""

    count: int = _field("how many were acquired")
    owned: int = _field("how many it owns now")


@_event()
@define(on_setattr=setters.frozen)
class PartitionsReleased(Event):
    """This node gave some away on purpose."""

    count: int = _field("how many were released")
    owned: int = _field("how many it owns now")


@_event("warning")
@define(on_setattr=setters.frozen)
class OwnershipLost(Event):
    """This node did not prove its lease in time and claims nothing from these partitions."""

    count: int = _field("how many were lost")
    why: str = _field("the reason")


@_event()
@define(on_setattr=setters.frozen)
class ItemsRecovered(Event):
    """Items of a dead holder wait again."""

    partition: int = _field("the partition")
    waiting: int = _field("how many wait again")
    held: int = _field("how many are held for the operator", 0)


@_event()
@define(on_setattr=setters.frozen)
class MemberJoined(Event):
    """A node appeared in the cluster."""

    node: str = _field("its name")
    incarnation: int = _field("which of its lives")
    members: int = _field("how many nodes live now")


@_event()
@define(on_setattr=setters.frozen)
class MemberLeft(Event):
    """A node is gone from the cluster."""

    node: str = _field("its name")
    incarnation: int = _field("which of its lives")
    members: int = _field("how many nodes live now")


@_event()
@define(on_setattr=setters.frozen)
class RedisReady(Event):
    """Redis answers and is configured as the queue needs it."""

    target: str = _field("where it is, without credentials")
    version: str = _field("its version")


@_event("warning")
@define(on_setattr=setters.frozen)
class RedisLost(Event):
    """Redis does not answer; nothing is accepted and nothing is claimed until it does."""

    target: str = _field("where it was, without credentials")
    why: str = _field("what happened")


@_event("error")
@define(on_setattr=setters.frozen)
class RedisRefused(Event):
    """Redis answers, but the queue cannot trust it (persistence, eviction policy, schema)."""

    target: str = _field("where it is, without credentials")
    why: str = _field("the setting and the fix")


@_event("warning")
@define(on_setattr=setters.frozen)
class QueueFull(Event):
    """Redis is nearly full: new mail is answered 452 until there is room."""

    used_bytes: int = _field("memory in use")
    limit_bytes: int = _field("the limit, `maxmemory`")


@_event()
@define(on_setattr=setters.frozen)
class QueueRoom(Event):
    """There is room again: new mail is taken."""

    used_bytes: int = _field("memory in use")
    limit_bytes: int = _field("the limit, `maxmemory`")


# Everything else.


@_event("warning")
@define(on_setattr=setters.frozen)
class Warning(Event):  # the name of the event comes from it; nothing here needs the builtin
    """Something that works and that the operator should look at."""

    text: str = _field("what it is")
    place: str = _nothing("the option or the part of the program")


@_event("error")
@define(on_setattr=setters.frozen)
class Error(Event):
    """A failure inside the program: a bug, or the machine's. It never holds content or credentials."""

    type: str = _field("the exception's type")
    place: str = _field("the part of the program")
    message: str = _field("what it says")
    traceback: str = _nothing("where it was raised")

    @classmethod
    def of(cls, trouble: Failure | BaseException, place: str) -> Error:
        """What was raised there."""
        failure = trouble if isinstance(trouble, Failure) else Failure(trouble)
        return cls(type(failure.value).__name__, place, str(failure.value), failure.getTraceback())
