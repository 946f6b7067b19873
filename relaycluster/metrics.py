"""Every Prometheus family, declared once with its meaning, over a registry that is passed in.

A label has a closed set of values that stands in its declaration: nothing that a client or a remote server chooses
creates a series. What counts on the way of a message is a plain cell, bound ahead of time: a tenth of a microsecond,
where prometheus_client's own (which lock) take a half to two. So all of this belongs to the reactor's thread.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, product
from typing import Literal, TypeVar, get_args

from attrs import frozen
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from relaycluster.mail.reply import Reply
from relaycluster.policy.bounce_class import BounceClass

PREFIX = "relaycluster_"
TOP_DOMAINS = 20

Verb = Literal[
    "CONNECT", "EHLO", "HELO", "MAIL", "RCPT", "DATA", "DOT", "RSET", "NOOP", "VRFY", "HELP", "QUIT", "STARTTLS", "AUTH", "BDAT",
    "NOT IMPLEMENTED", "FOREIGN", "FAREWELL", "OTHER",
]  # fmt: skip
MessageResult = Literal["queued", "deferred", "refused", "aborted"]
RejectReason = Literal[
    "relay", "policy", "authentication", "address", "syntax", "sequence", "size", "recipients", "content", "limits",
    "loop", "timeout", "queue_full", "unavailable", "draining", "other",
]  # fmt: skip
TLSVersion = Literal["none", "TLSv1.2", "TLSv1.3", "other"]
AuthResult = Literal["accepted", "refused", "backoff", "unavailable"]
ProxyResult = Literal["client", "health", "untrusted", "malformed", "timeout"]
SigningResult = Literal["signed", "no_key", "failed"]
WatchedFile = Literal["certificate", "dkim", "users", "aliases"]
QueueState = Literal["scheduled", "ready", "leased", "held"]
AttemptResult = Literal["delivered", "deferred", "failed"]
CodeClass = Literal["2xx", "4xx", "5xx", "none"]
ConnectionState = Literal["connecting", "busy", "idle"]
ThrottleReason = Literal["rate", "connections", "process_connections", "suspended"]
RedisOperation = Literal[
    "enqueue", "enqueue_spread", "spread_done", "spreads", "put_chunk", "claim", "content", "finish", "defer", "put_back",
    "notes", "note", "leave_home", "notices", "notice_done", "acquire", "disown", "recover", "pause", "due", "sweep",
    "tally", "join", "beat", "leave", "take", "hold_slots", "spend", "attempt_wait", "attempt_failed",
    "attempt_proved", "check", "other",
]  # fmt: skip
RedisErrorKind = Literal["connection", "timeout", "full", "refused", "other"]
ReloadResult = Literal["applied", "refused"]

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_REDIS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_ATTEMPT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
_QUEUED = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0,
    259200.0, 432000.0,
)  # fmt: skip


@frozen
class Label:
    """A label and all of its values, or in words where they come from when only a running node knows them."""

    name: str
    values: tuple[str, ...] = ()
    source: str = ""


@frozen
class Family:
    """One declared family; `name` is without prefix, and for a counter without `_total`."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    doc: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exposed_name(self) -> str:
        """The name that dashboards use."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


def _closed(name: str, literal: object) -> Label:
    return Label(name, get_args(literal))


_Value = TypeVar("_Value", bound=str)

FAMILIES: tuple[Family, ...] = (
    Family(
        "counter",
        "smtp_connections",
        "Connections that a listener accepted.",
        (Label("listener", source="the addresses in the configuration"),),
    ),
    Family("gauge", "smtp_sessions", "Inbound sessions that are open."),
    Family(
        "counter",
        "smtp_commands",
        "Replies that were given, by the command that they answer: CONNECT is the greeting, DOT the end "
        "of the content, FAREWELL a 421 that nobody asked for.",
        (_closed("verb", Verb), Label("code", source="the reply codes of this server")),
    ),
    Family(
        "counter",
        "smtp_messages",
        "Messages for which DATA was accepted, by how they ended: `queued` (250), `deferred` (4yz), "
        "`refused` (5yz) or `aborted` (the client left).",
        (_closed("result", MessageResult),),
    ),
    Family("counter", "smtp_rejects", "Negative replies to clients, by reason.", (_closed("reason", RejectReason),)),
    Family(
        "counter",
        "smtp_tls_sessions",
        "Inbound sessions that ended, by the TLS version that they spoke at the end (`none`: in clear).",
        (_closed("version", TLSVersion),),
    ),
    Family("counter", "smtp_tls_failures", "TLS handshakes of clients that did not come to an end."),
    Family(
        "gauge",
        "tls_certificate_expiry_timestamp_seconds",
        "When a certificate of the listeners ends, in seconds since the epoch.",
        (Label("name", source="the names of the certificates in the configuration"),),
    ),
    Family(
        "counter",
        "smtp_auth",
        "Logins, by result. `refused`: wrong name or password, or to act as somebody else; `backoff`: refused unseen after too many failures; "
        "`unavailable`: it could not be checked, or too many waited for it.",
        (_closed("result", AuthResult),),
    ),
    Family(
        "counter",
        "smtp_proxy",
        "Connections to listeners with the PROXY protocol, by what their header said. `client`: who the client is; "
        "`health`: a check of the balancer's own; `untrusted`, `malformed`, `timeout`: closed.",
        (_closed("result", ProxyResult),),
    ),
    Family("gauge", "smtp_stress", "1 while session slots run out and sessions are cut short, else 0."),
    Family(
        "counter",
        "dkim_signatures",
        "Messages that were to be signed, by result. `no_key`: for the author's domain, and there is no fallback; "
        "`failed`: the client was told 451, or a notice of our own went unsigned.",
        (_closed("result", SigningResult),),
    ),
    Family(
        "histogram", "smtp_accept_seconds", "From the end of the content to the 250: the durable write.", (), _SHORT
    ),
    Family(
        "gauge",
        "queue_items",
        "Items in the partitions that this process owns. `scheduled`: due later; `ready`: due now; "
        "`leased`: being sent; `held`: by an operator.",
        (_closed("state", QueueState),),
    ),
    Family("gauge", "queue_bytes", "Content that waits in the partitions that this process owns."),
    Family(
        "gauge",
        "queue_oldest_seconds",
        "The age of the oldest item that is due and not being sent; 0 when there is none.",
    ),
    Family(
        "gauge",
        "queue_domain_items",
        f"The largest backlogs by recipient domain, at most {TOP_DOMAINS}; all others together are `_other`.",
        (Label("domain", source=f"the {TOP_DOMAINS} largest backlogs, and `_other`"),),
    ),
    Family(
        "counter",
        "delivery_attempts",
        "Recipients that were attempted, by outcome and by the class of the remote reply (`none`: there was none).",
        (_closed("result", AttemptResult), _closed("code_class", CodeClass)),
    ),
    Family("histogram", "delivery_seconds", "One SMTP transaction, from MAIL to the last reply.", (), _ATTEMPT),
    Family("histogram", "delivery_queue_seconds", "From our 250 to the remote server's 250.", (), _QUEUED),
    Family("gauge", "delivery_connections", "Outbound connections.", (_closed("state", ConnectionState),)),
    Family(
        "counter",
        "bounces",
        "Recipients that failed for good, by class.",
        (Label("class", tuple(one.value for one in BounceClass)),),
    ),
    Family(
        "counter",
        "throttled",
        "Times that mail for a destination had to wait for a limit.",
        (_closed("reason", ThrottleReason),),
    ),
    Family(
        "counter",
        "ownership_lost",
        "Partitions that were lost without being released: this node did not prove its lease in time.",
    ),
    Family("counter", "possible_duplicates", "Items that may have been sent before and are sent again."),
    Family(
        "histogram",
        "redis_seconds",
        "From asking Redis to its answer.",
        (_closed("operation", RedisOperation),),
        _REDIS,
    ),
    Family(
        "counter",
        "redis_errors",
        "Requests to Redis that failed. `full`: over maxmemory; `refused`: Redis is not configured as "
        "the queue needs it.",
        (_closed("kind", RedisErrorKind),),
    ),
    Family("gauge", "ring_nodes", "Live delivery nodes, as this process sees them."),
    Family("gauge", "ring_partitions_owned", "Partitions that this process owns."),
    Family("gauge", "node_load_ratio", "Owned partitions over this node's fair share of them: 1 is balanced."),
    Family(
        "counter", "config_reloads", "Attempts to read the configuration again.", (_closed("result", ReloadResult),)
    ),
    Family(
        "counter",
        "file_reloads",
        "Files named by the configuration that changed and were read again; `refused`: the old content stays.",
        (_closed("file", WatchedFile), _closed("result", ReloadResult)),
    ),
    Family("histogram", "reactor_lag_seconds", "How late a timer of the event loop fired.", (), _SHORT),
    Family(
        "gauge",
        "build_info",
        "Always 1; the labels tell what runs.",
        (Label("version", source="the release"), Label("python", source="the interpreter's version")),
    ),
)
_BY_NAME = {family.name: family for family in FAMILIES}


class Count:
    """A counter: it only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, by: float = 1) -> None:
        self.value += by


class Level:
    """A gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, by: float = 1) -> None:
        self.value += by

    def dec(self, by: float = 1) -> None:
        self.value -= by

    def set(self, value: float) -> None:
        self.value = value


class Spread:
    """A histogram of durations."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


class Metrics(Collector):
    """All families of a process, registered in `registry`.

    An attribute has its family's name; a mapping goes from the label's value to the cell. `listeners` are the configured
    addresses; a connection on another one raises KeyError. What has a closed set of labels is there from the start at
    0, so that a dashboard shows the first event as a change.
    """

    def __init__(self, registry: CollectorRegistry, *, version: str, listeners: Iterable[str] = ()) -> None:
        self._cells: dict[str, dict[tuple[str, ...], Count | Level | Spread]] = {name: {} for name in _BY_NAME}
        self._domains: tuple[tuple[str, int], ...] = ()
        self._certificates: tuple[tuple[str, float], ...] = ()
        self.smtp_connections = {address: self._count("smtp_connections", address) for address in listeners}
        self.smtp_sessions = self._level("smtp_sessions")
        self.smtp_messages: Mapping[MessageResult, Count] = self._counts("smtp_messages", get_args(MessageResult))
        self.smtp_rejects: Mapping[RejectReason, Count] = self._counts("smtp_rejects", get_args(RejectReason))
        self.smtp_tls_sessions: Mapping[TLSVersion, Count] = self._counts("smtp_tls_sessions", get_args(TLSVersion))
        self.smtp_tls_failures = self._count("smtp_tls_failures")
        self.smtp_auth: Mapping[AuthResult, Count] = self._counts("smtp_auth", get_args(AuthResult))
        self.smtp_proxy: Mapping[ProxyResult, Count] = self._counts("smtp_proxy", get_args(ProxyResult))
        self.smtp_stress = self._level("smtp_stress")
        self.dkim_signatures: Mapping[SigningResult, Count] = self._counts("dkim_signatures", get_args(SigningResult))
        self.smtp_accept_seconds = self._spread("smtp_accept_seconds")
        self.delivery_seconds = self._spread("delivery_seconds")
        self.delivery_queue_seconds = self._spread("delivery_queue_seconds")
        self.delivery_connections: Mapping[ConnectionState, Level] = {
            state: self._level("delivery_connections", state) for state in get_args(ConnectionState)
        }
        self.bounces: Mapping[BounceClass, Count] = {one: self._count("bounces", one.value) for one in BounceClass}
        self.throttled: Mapping[ThrottleReason, Count] = self._counts("throttled", get_args(ThrottleReason))
        self.ownership_lost = self._count("ownership_lost")
        self.possible_duplicates = self._count("possible_duplicates")
        self.redis_errors: Mapping[RedisErrorKind, Count] = self._counts("redis_errors", get_args(RedisErrorKind))
        self.ring_nodes = self._level("ring_nodes")
        self.ring_partitions_owned = self._level("ring_partitions_owned")
        self.node_load_ratio = self._level("node_load_ratio")
        self.config_reloads: Mapping[ReloadResult, Count] = self._counts("config_reloads", get_args(ReloadResult))
        self.file_reloads: Mapping[tuple[WatchedFile, ReloadResult], Count] = {
            labels: self._count("file_reloads", *labels)
            for labels in product(get_args(WatchedFile), get_args(ReloadResult))
        }
        self.reactor_lag_seconds = self._spread("reactor_lag_seconds")
        self._level("build_info", version, platform.python_version()).set(1)
        self._queue_items = {state: self._level("queue_items", state) for state in get_args(QueueState)}
        self._queue_bytes = self._level("queue_bytes")
        self._queue_oldest = self._level("queue_oldest_seconds")
        self._redis = {name: self._spread("redis_seconds", name) for name in get_args(RedisOperation)}
        self._attempts = {
            labels: self._count("delivery_attempts", *labels)
            for labels in product(get_args(AttemptResult), get_args(CodeClass))
        }
        self._verbs = frozenset(get_args(Verb))
        self._commands: dict[tuple[str, int], Count] = {}
        registry.register(self)

    def smtp_command(self, verb: str, code: int) -> None:
        """A command was answered; the signature of the server conversation's `answered`. An unknown verb is OTHER."""
        key = (verb, code)
        cell = self._commands.get(key)
        if cell is None:
            if verb not in self._verbs or not 200 <= code <= 599:
                self.smtp_command("OTHER", code if 200 <= code <= 599 else 500)
                return
            cell = self._commands[key] = self._count("smtp_commands", verb, str(code))
        cell.value += 1

    def smtp_reject(self, reply: Reply) -> None:
        """A client got this negative reply."""
        self.smtp_rejects[reject_reason(reply.code, reply.enhanced)].inc()

    def delivery_attempt(self, result: AttemptResult, code: int) -> None:
        """A recipient was attempted; `code` of the remote reply, 0 when there was none."""
        self._attempts[result, _CODE_CLASSES.get(code // 100, "none")].value += 1

    def redis_observed(self, operation: str, seconds: float) -> None:
        """One operation had its answer after so long."""
        (self._redis.get(operation) or self._redis["other"]).observe(seconds)

    def redis_seconds(self, operation: str) -> Spread:
        """The histogram of one operation, to be kept by who observes; an unknown operation is `other`."""
        return self._redis.get(operation) or self._redis["other"]

    def queue_snapshot(
        self,
        *,
        scheduled: int,
        ready: int,
        leased: int,
        held: int,
        size_bytes: int,
        oldest_seconds: float,
        domains: Iterable[tuple[str, int]],
    ) -> None:
        """What the owned partitions hold now. `domains` are the largest backlogs, in any order and number."""
        for state, items in (("scheduled", scheduled), ("ready", ready), ("leased", leased), ("held", held)):
            self._queue_items[state].set(items)
        self._queue_bytes.set(size_bytes)
        self._queue_oldest.set(oldest_seconds)
        largest = sorted(domains, key=lambda backlog: (-backlog[1], backlog[0]))[:TOP_DOMAINS]
        other = scheduled + ready + leased + held - sum(items for _, items in largest)
        self._domains = (*largest, ("_other", max(0, other)))

    def certificates(self, expiry: Iterable[tuple[str, float]]) -> None:
        """The certificates that are in use now: a name of each and when it ends, in seconds since the epoch. Of two with one
        name the one that ends first is shown."""
        soonest: dict[str, float] = {}
        for name, seconds in expiry:
            soonest[name] = min(seconds, soonest.get(name, seconds))
        self._certificates = tuple(soonest.items())

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """What prometheus_client asks for at each scrape."""
        for family in FAMILIES:
            cells = self._cells[family.name]
            if family.name == "queue_domain_items":
                yield _gauge_of(family, "domain", self._domains)
                continue
            if family.name == "tls_certificate_expiry_timestamp_seconds":
                yield _gauge_of(family, "name", self._certificates)
                continue
            names = [label.name for label in family.labels]
            name = PREFIX + family.name
            if family.kind == "counter":
                counter = CounterMetricFamily(name, family.doc, labels=names)
                for labels, cell in cells.items():
                    if isinstance(cell, Count):
                        counter.add_metric(labels, cell.value)
                yield counter
            elif family.kind == "gauge":
                gauge = GaugeMetricFamily(name, family.doc, labels=names)
                for labels, cell in cells.items():
                    if isinstance(cell, Level):
                        gauge.add_metric(labels, cell.value)
                yield gauge
            else:
                yield self._histogram(family, names)

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """The names, so that the registry refuses a second family of one name."""
        return self.collect()

    def _histogram(self, family: Family, names: Sequence[str]) -> HistogramMetricFamily:
        histogram = HistogramMetricFamily(PREFIX + family.name, family.doc, labels=names)
        bounds = [*map(repr, family.buckets), "+Inf"]
        for labels, cell in self._cells[family.name].items():
            # An operation that never happened needs no fifteen series.
            if isinstance(cell, Spread) and (any(cell.counts) or not labels):
                histogram.add_metric(
                    labels, list(zip(bounds, map(float, accumulate(cell.counts)), strict=True)), cell.sum
                )
        return histogram

    def _count(self, name: str, *labels: str) -> Count:
        cell = self._cells[name][labels] = Count()
        return cell

    def _counts(self, name: str, values: Iterable[_Value]) -> dict[_Value, Count]:
        return {value: self._count(name, value) for value in values}

    def _level(self, name: str, *labels: str) -> Level:
        cell = self._cells[name][labels] = Level()
        return cell

    def _spread(self, name: str, *labels: str) -> Spread:
        cell = self._cells[name][labels] = Spread(_BY_NAME[name].buckets)
        return cell


def _gauge_of(family: Family, label: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    """A gauge whose series come and go."""
    gauge = GaugeMetricFamily(PREFIX + family.name, family.doc, labels=[label])
    gauge.samples.extend(Sample(gauge.name, {label: name}, value) for name, value in values)
    return gauge


_CODE_CLASSES: Mapping[int, CodeClass] = {2: "2xx", 3: "2xx", 4: "4xx", 5: "5xx"}

# By the reply code where that says more than the enhanced code (RFC 4954 4.1, 6), then by the enhanced code's subject and
# detail (RFC 3463, RFC 5248), then by its subject.
_CODES: Mapping[int, RejectReason] = {
    454: "authentication",
    530: "authentication",
    534: "authentication",
    535: "authentication",
    538: "authentication",
}
_SENDER_IS_NOT_THEIRS = 553
_REASONS: Mapping[str, RejectReason] = {
    "7.1": "relay",
    "7.0": "limits",
    "7.4": "authentication",
    "7.8": "authentication",
    "7.9": "authentication",
    "7.11": "authentication",
    "5.1": "sequence",
    "5.3": "recipients",
    "3.0": "unavailable",
    "3.1": "queue_full",
    "3.2": "draining",
    "3.4": "size",
    "4.2": "timeout",
    "4.5": "limits",
    "4.6": "loop",
    "1": "address",
    "2": "address",
    "5": "syntax",
    "6": "content",
    "7": "policy",
}


def reject_reason(code: int, enhanced: str) -> RejectReason:
    """Why a client was refused, from our own reply's codes."""
    detail = enhanced.partition(".")[2]
    reason = _CODES.get(code) or _REASONS.get(detail) or _REASONS.get(detail.partition(".")[0])
    if reason is None:
        return "unavailable" if 400 <= code < 500 else "other"
    if reason == "relay" and (code < 500 or code == _SENDER_IS_NOT_THEIRS):
        # 4.7.1 is a rate that is used up, 553 5.7.1 a sender address that is not the user's.
        return "limits" if code < 500 else "policy"
    return reason
