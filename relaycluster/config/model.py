"""Every option: its name, type, unit, default and a paragraph for the operator, frozen once it is read.

The reference page and the JSON Schema are generated from here. Defaults are written as an operator writes them.
An attribute has the name of its key (`class` is `message_class`), a duration is held in seconds, a size in bytes.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from attrs import field, frozen
from pydantic import Field, SecretStr

from relaycluster.config.rules import ReplyRule, rules_of
from relaycluster.config.section import Section
from relaycluster.config.section import option as _option
from relaycluster.config.values import (
    Bytes,
    BytesPerSecond,
    CertificateName,
    ClientNetwork,
    DNSServer,
    Domain,
    FilePath,
    Flag,
    Kind,
    Listen,
    Network,
    OptionalBytes,
    OptionalConnectionRate,
    OptionalDomain,
    OptionalListen,
    OptionalMessageRate,
    OptionalRate,
    Pattern,
    ProxyNetwork,
    Real,
    RouteHost,
    Seconds,
    Selector,
    SourceAddress,
    Text,
    Whole,
    Workers,
)
from relaycluster.mail.envelope import CLASSES, MessageClass
from relaycluster.mail.queue_id import MOST_PARTITIONS
from relaycluster.policy.reply_rules import ReplyRules
from relaycluster.policy.routing import DestinationSettings, RouteTable

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
DEFAULT_LISTENER = {"address": "127.0.0.1:2525"}
TLSName = Literal["none", "may", "encrypt", "verify"]


class Node(Section):
    """This process's place in the cluster."""

    id: Annotated[Text, Kind("name")] = _option(
        "",
        "The node's name in the cluster, in metrics and logs: letters, digits, `.`, `_` and `-`, at most 64. It must be"
        " its own, and stay the same over restarts: a node that died comes back under its name and takes its mail up"
        " again. Empty: the machine's host name.",
    )
    hostname: OptionalDomain = _option(
        "",
        "The fully qualified domain name in the greeting, in EHLO, in `Received:` and in notices (RFC 5321 2.3.5). It"
        " should resolve to the address that remote servers see, and back. Empty: the machine's host name.",
    )
    roles: tuple[Literal["edge", "delivery"], ...] = _option(
        ("edge", "delivery"),
        "What the node does: `edge` accepts mail on its listeners, `delivery` owns recipient domains and sends. An edge"
        " alone needs delivery nodes on the same Redis.",
        min_length=1,
    )
    workers: Workers = _option(
        1,
        'Processes on this host that share its sockets; `"auto"` is one for each core. This release runs one process'
        " whatever is written here.",
    )
    weight: Real = _option(
        1.0,
        "The node's share of the recipient domains, relative to the other delivery nodes: 2.0 owns twice as many.",
        ge=0.01,
        le=100,
    )
    state_dir: FilePath = _option(
        "/var/lib/relaycluster",
        "The directory for what belongs to this node: the embedded Redis with its files, locks. It is created when it"
        " is missing. Without a configuration file: below the user's own state directory.",
    )
    drain_deadline: Seconds = _option(
        "60s",
        "How long a node that is told to stop lets open transactions and deliveries finish before it leaves. What is"
        " unfinished then stays queued, and another node sends it. The init system must wait longer than this.",
        gt=0,
    )


class Redis(Section):
    """The shared queue."""

    url: Annotated[Text, Kind("URL")] = _option(
        "embedded",
        "`embedded` starts a Redis of our own, with its files under `node.state_dir`, for this node alone. A cluster"
        " names one Redis for all: `redis://host:6379/0`, `rediss://…` (TLS) or `unix:///run/redis/redis.sock`. User"
        " and password may stand in the URL (`redis://user:password@host`), but the keys below keep them out of it.",
        repr=False,
    )
    username: Text = _option("", "The ACL user. Empty: the default user.")
    password: SecretStr = _option("", "The password. `password_file` is the better place for it.")
    password_file: FilePath = _option("", "A file that holds the password, and nothing else but a line end.")
    ca_file: FilePath = _option(
        "", "The certificates (PEM) that sign the server's, for `rediss://`. Empty: those that the system trusts."
    )
    durability: Literal["fsync", "memory"] = _option(
        "fsync",
        "What a message must survive before it is answered 250. `fsync`: Redis has written it to its append-only file"
        " and synced that; Redis must run with `appendonly yes` and `appendfsync always`, which is checked at the start"
        " and on each reconnect. `memory`: nothing, for tests only.",
    )
    partitions: Whole = _option(
        1024,
        "Into how many parts the recipient domains are divided among the delivery nodes: a power of two, at most"
        f" {MOST_PARTITIONS}. It is fixed when the cluster is created; a node that is configured otherwise does not"
        " start.",
        ge=1,
        le=MOST_PARTITIONS,
    )
    lease: Seconds = _option(
        "10s",
        "For how long a delivery node owns its domains without renewing. It is also how long mail for the domains of a"
        " node that died waits for the next owner. A pause of a node or of Redis that is longer moves ownership.",
        ge=1,
        le=300,
    )
    memory_watermark: Real = _option(
        0.85,
        "The part of Redis's `maxmemory` above which new mail is answered 452 4.3.1, so that there is always room to"
        " deliver what is queued.",
        gt=0,
        lt=1,
    )
    maxmemory: OptionalBytes = _option(
        "",
        "The memory limit of the embedded Redis. Empty: it decides from the machine's memory. Any other Redis has it in"
        " its own configuration, with `maxmemory-policy noeviction`.",
        ge=16 << 20,
    )
    done_retention: Seconds = _option(
        "30min",
        "How long the ids of settled messages are kept, so that a repeated enqueue changes nothing.",
        ge=60,
    )
    trace_memory: Bytes = _option(
        "256MiB",
        "How much memory the history of settled messages may take in Redis, oldest out first. Nothing writes it in this"
        " release; the event log has the history.",
    )

    @property
    def target(self) -> RedisTarget:
        """Where `url` points, taken apart, with the credentials."""
        return RedisTarget.of(self)


@frozen
class RedisTarget:
    """Where the queue's Redis is. `kind` is "embedded", "tcp" (host, port, tls) or "unix" (path)."""

    kind: Literal["embedded", "tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""

    @classmethod
    def of(cls, redis: Redis) -> RedisTarget:
        """The parts of a URL that `checks` found to be well formed."""
        if redis.url == "embedded":
            return cls("embedded")
        parts = urlsplit(redis.url)
        username = redis.username or unquote(parts.username or "")
        password = redis.password.get_secret_value() or unquote(parts.password or "")
        if parts.scheme == "unix":
            return cls("unix", path=unquote(parts.path), username=username, password=password)
        return cls(
            "tcp",
            host=parts.hostname or "",
            port=parts.port or 6379,
            tls=parts.scheme == "rediss",
            database=int(parts.path.strip("/") or 0),
            username=username,
            password=password,
            ca_file=redis.ca_file,
        )


class Listener(Section):
    """A socket that accepts mail; one `[[listener]]` table for each."""

    address: Listen = Field(
        description="Where to listen: an IP address and a port, `0.0.0.0:587` or `[::]:25`. The port 0 takes a free one."
    )
    mode: Literal["submission", "mx"] = _option(
        "submission",
        "`submission` (RFC 6409): for our own users and machines, who may relay to anywhere when they have authenticated"
        " or their address is in `access.networks`; a missing Date or Message-ID is added, and what is sent is signed."
        " `mx`: for the world, who may send to `access.relay_domains` only; the header stays as it is, and there is no"
        " AUTH.",
    )
    tls: Literal["none", "starttls", "implicit"] = _option(
        "none",
        "`starttls` offers TLS within the session (RFC 3207; ports 25, 587 and 2525), `implicit` speaks it from the first"
        " octet (RFC 8314; port 465). Both need `tls.certificate`.",
    )
    require_tls: Flag = _option(
        False,
        "With `starttls`: neither AUTH nor mail is taken in clear (530 5.7.0). Not for a public `mx` listener: RFC 3207 4"
        " forbids it there, and mail from servers without TLS would not arrive.",
    )
    auth_without_tls: Flag = _option(
        False,
        "Whether users may authenticate in clear, where everybody on the way reads their passwords. Only for networks of"
        " your own that nobody else is in.",
    )
    proxy_protocol_from: tuple[ProxyNetwork, ...] = _option(
        (),
        "The addresses of load balancers that send the PROXY protocol (version 1 or 2) before everything else, as HAProxy"
        " does with `send-proxy-v2`. The client that the header names decides about access, limits, logs and `Received:`;"
        " the balancer itself is no client. When it is set, everybody who connects from elsewhere or without a header is"
        " turned away.",
    )
    message_class: Literal["urgent", "normal", "bulk"] = _option(
        "normal",
        "Which mail goes first where a domain's limit makes mail wait: `urgent` before `normal` before `bulk`. A user's"
        " own class goes before it, and before that the header `Relay-Class` of an authenticated sender.",
        alias="class",
    )

    @property
    def priority(self) -> MessageClass:
        """`message_class` as the queue knows it."""
        return CLASSES[self.message_class]


class SNI(Section):
    """A further certificate, for clients that ask for one of its names (RFC 6066 3); one `[[tls.sni]]` table for each."""

    names: tuple[CertificateName, ...] = _option(
        (), "The names, `mx.example.org` or `*.example.org`. Empty: those that stand in the certificate."
    )
    certificate: FilePath = Field(description="The certificate chain (PEM), the server's own first.")
    key: FilePath = Field(description="Its private key (PEM).")


class TLS(Section):
    """The listeners' certificates. Changed files are noticed within seconds and used from the next session on; with a new pair
    that does not fit, the old one stays."""

    certificate: FilePath = _option(
        "",
        "The certificate chain (PEM), the server's own first; for clients that name no host, or one that no"
        " `[[tls.sni]]` has.",
    )
    key: FilePath = _option(
        "", "The certificate's private key (PEM), without a passphrase. ECDSA keys cost much less at each handshake."
    )
    minimum: Literal["1.2", "1.3"] = _option(
        "1.2", "The oldest TLS version that is spoken (RFC 8996 forbids older ones)."
    )
    sni: tuple[SNI, ...] = _option((), "Further certificates, by the name that the client asks for.")


class Access(Section):
    """Who may send through us."""

    networks: Annotated[tuple[ClientNetwork, ...] | None, Kind("list of networks")] = _option(
        None,
        "The client networks that may relay to anywhere without AUTH, on listeners of mode `submission`. Not set:"
        " loopback, and that on listeners bound to a loopback address only. Never the address of a load balancer: the"
        " whole world comes from there. Behind `proxy_protocol_from` the client's own address counts.",
    )
    relay_domains: tuple[Pattern, ...] = _option(
        (),
        "The recipient domains for which mail is accepted from anyone: `example.com`, or `*.example.com` for all below.",
    )
    users_file: FilePath = _option(
        "",
        "The users who may authenticate on listeners of mode `submission`: a file that `relaycluster user add` writes."
        " Changes hold within seconds; while it is wrong, the old users stay. Empty: no AUTH.",
    )
    aliases_file: FilePath = _option(
        "",
        "Addresses that stand for others, one `left: right, right` a line, expanded before a message is queued. They never"
        " widen who may send to where. Changes hold within seconds; while it is wrong, the old aliases stay.",
    )

    def networks_for(self, listener: Listener) -> tuple[Network, ...]:
        """The networks that may relay on this listener."""
        if listener.mode == "mx":
            return ()
        if self.networks is not None:
            return self.networks
        return LOOPBACK if ip_address(listener.address.host).is_loopback else ()


class Limits(Section):
    """What one client, session and message may cost. Connections are counted in each process, messages over the whole cluster."""

    message_size: Bytes = _option(
        "25MiB",
        "The largest content that is accepted, as SIZE announces it (RFC 1870). The same as at large providers; Postfix"
        " has 10 MB.",
        ge=1024,
        le=1 << 30,
    )
    recipients: Whole = _option(
        1000,
        "The most recipients of one message; more are answered 452 4.5.3, and the client sends them in another"
        " transaction. RFC 5321 4.5.3.1.8 asks for 100 at least; as in Postfix (`smtpd_recipient_limit`).",
        ge=1,
        le=100_000,
    )
    connections: Whole = _option(2000, "The most sessions at once in a process; more are answered 421.", ge=1)
    connections_per_client: Whole = _option(
        100,
        "The most sessions at once from one client in a process; more are answered 421. A client is an IPv4 address or an"
        " IPv6 network of 64 bits.",
        ge=1,
    )
    connection_rate_per_client: OptionalConnectionRate = _option(
        "",
        "How often one client may connect to a process: `60/min`; more are answered 421. All of them may come at once,"
        " unless `burst=` says less. As Postfix' `smtpd_client_connection_rate_limit`. Empty: no limit.",
    )
    messages_per_client: OptionalMessageRate = _option(
        "",
        "How many messages one client may hand in, over the whole cluster: a user, or the address of a client without AUTH."
        " `1000/h`; more are answered 450 4.7.1. All of them may come at once, unless `burst=` says less. A user's own rate"
        " goes before it. Empty: no limit.",
    )
    stress_at: Real = _option(
        0.8,
        "From this part of `limits.connections` on, sessions are cut short so that honest clients find room: ten seconds for"
        " a command, one error. As Postfix' stress-adaptive behaviour. 1.0: never.",
        gt=0,
        le=1,
    )
    errors: Whole = _option(
        20, "After so many refused commands a session ends with 421. As in Postfix (`smtpd_hard_error_limit`).", ge=1
    )
    command_timeout: Seconds = _option(
        "5min", "How long a session may wait for the next command; RFC 5321 4.5.3.2.7 asks for 5 minutes.", gt=0
    )
    data_timeout: Seconds = _option("10min", "How long a session may stand still within the content.", gt=0)
    transaction_time: Seconds = _option(
        "30min", "How long one message may take, from MAIL to the end of its content.", gt=0
    )
    minimum_data_rate: BytesPerSecond = _option(
        "500B/s", "The slowest flow of content that is borne, on average, from a client that holds a session."
    )
    header_size: Bytes = _option(
        "128KiB",
        "The largest header of a message; more is answered 552 5.3.4. Postfix has 100 KiB (`header_size_limit`).",
        ge=4096,
        le=252 << 10,
    )
    header_fields: Whole = _option(
        1000, "The most fields in a message's header; more are answered 554 5.6.0.", ge=50, le=100_000
    )
    bare_newline: Literal["reject", "normalize"] = _option(
        "reject",
        "What becomes of content with a CR or LF that stands alone: `reject` answers 554 5.6.0, since such content can hide"
        " a second message from one of two servers (SMTP smuggling, CVE-2023-51764); `normalize` makes each of them a line"
        " end, for old software of your own. Neither lets it end a message.",
    )


class Delivery(Section):
    """How mail is sent on."""

    connections: Whole = _option(500, "The most outbound connections of a process.", ge=1)
    connections_per_domain: Whole = _option(
        20,
        "The most connections at once to one recipient domain, over the whole cluster. As in Postfix"
        " (`default_destination_concurrency_limit`).",
        ge=1,
    )
    messages_per_connection: Whole = _option(
        100, "After so many messages a connection is closed and another one opened.", ge=1
    )
    idle: Seconds = _option("10s", "How long a connection is kept for the next message to the same host.", gt=0, le=600)
    rate_per_domain: OptionalRate = _option(
        "", "The most SMTP transactions to one recipient domain, over the whole cluster. Empty: no limit."
    )
    retry: tuple[Seconds, ...] = _option(
        ("1min", "5min", "15min", "30min", "1h", "2h", "4h"),
        "How long a deferred message waits before each next attempt, then the last of them again and again."
        " RFC 5321 4.5.4.1 asks for 30 minutes in general, and for two attempts in the first hour.",
        min_length=1,
    )
    lifetime: Seconds = _option(
        "5d", "How long a message is tried before its sender gets it back; RFC 5321 4.5.4.1 asks for 4 to 5 days.", gt=0
    )
    delay_notice: Seconds = _option(
        "4h", "After how long the sender is told that a message is still on its way. `0s`: never.", ge=0
    )
    notices_per_sender: OptionalMessageRate = _option(
        "1000/h",
        "How many notices of failure are sent to one sender domain, over the whole cluster, and as many others (of delay, of success)"
        " besides: who forges an address shall not turn us on its owner (backscatter). What is beyond is not sent, each with a line in the"
        " log. Empty: no limit.",
    )
    tls: TLSName = _option(
        "may",
        "TLS to remote servers. `may` uses STARTTLS where it is offered, with any certificate, and goes on in clear where it is broken"
        " (RFC 7435). `encrypt` sends nothing in clear, and takes any certificate. `verify` asks for a certificate that a trusted authority"
        " signed for the host's name as well; the name of an MX host is only as true as DNS. Where they can not be had, mail is deferred."
        " `none` never uses TLS.",
    )
    ca_file: FilePath = _option(
        "",
        "The certificates (PEM) of the authorities that `verify` trusts. Empty: those that the system trusts.",
    )
    source_addresses: tuple[SourceAddress, ...] = _option(
        (),
        "The local addresses that mail leaves from, each with the name for EHLO where it is not `node.hostname`:"
        ' `["192.0.2.1 mail1.example.net", "2001:db8::1 mail1.example.net"]`. With several of a family, connections take turns. A family'
        " without an address is not used. Empty: the system chooses.",
    )
    provider_rules: Flag = _option(
        True,
        "Whether the shipped rules for the replies of the large providers hold, after the `[[reply_rule]]` tables"
        " (docs/design/trouble.md).",
    )


class Destination(Section):
    """What is different for some recipient domains; one `[[destination]]` table for each.

    The limits hold over the whole cluster, and for all domains of the table together: they are one provider. Only under
    `*` without `hosts` does each domain have them for itself.
    """

    name: Text = _option(
        "",
        "Under which name the destination is counted, shown, and suspended (`relaycluster suspend --limit NAME`): letters, digits, `.`, `_`, `-`"
        " and `*`. Empty: the first of `match` or `mx_suffix`.",
    )
    match: tuple[Pattern, ...] = _option(
        (),
        "The recipient domains: `example.com`, `*.example.org` for all below it, `*` for all. The most exact pattern"
        " wins: the domain itself, then the longest `*.` pattern, then `*`.",
    )
    mx_suffix: tuple[Domain, ...] = _option(
        (),
        "All domains whose MX hosts' names end so, as one provider: `protection.outlook.com` is for `example.com` with the MX host"
        " `example-com.mail.protection.outlook.com`. The most preferred MX hosts count. Only for domains that no `match` but `*` names; of"
        " several suffixes the longest holds.",
    )
    hosts: tuple[RouteHost, ...] = _option(
        (),
        "The route: these hosts instead of the MX records, in this order; a name or an IP address, with a port where it"
        ' is not 25: `10.1.1.1:25`, `[::1]:2525`. With `match = ["*"]` it is the smarthost.',
    )
    port: Whole = _option(
        25,
        "The port on which MX hosts are asked. Mail between domains uses 25; another one is for private networks.",
        ge=1,
        le=65535,
    )
    rate: OptionalRate = _option("", "Instead of `delivery.rate_per_domain`.")
    connections: Whole | None = _option(None, "Instead of `delivery.connections_per_domain`.", ge=1)
    messages_per_connection: Whole | None = _option(None, "Instead of `delivery.messages_per_connection`.", ge=1)
    tls: TLSName | None = _option(None, "Instead of `delivery.tls`.")
    source_addresses: tuple[SourceAddress, ...] | None = _option(None, "Instead of `delivery.source_addresses`.")

    @property
    def limit_name(self) -> str:
        """Under which name all its domains are counted together; empty where each is by itself."""
        if self.match == ("*",) and not self.hosts:
            return ""
        return self.name or next(iter((*self.match, *self.mx_suffix)), "")

    def settings(self, delivery: Delivery) -> DestinationSettings:
        """The destination as delivery sees it, with `delivery`'s values where it has none of its own."""
        return DestinationSettings(
            name=self.limit_name,
            hosts=self.hosts,
            port=self.port,
            rate=self.rate or delivery.rate_per_domain,
            connections=self.connections or delivery.connections_per_domain,
            messages_per_connection=self.messages_per_connection or delivery.messages_per_connection,
            tls=self.tls or delivery.tls,
            mx_suffix=self.mx_suffix,
            sources=delivery.source_addresses if self.source_addresses is None else self.source_addresses,
        )


class DKIM(Section):
    """A key that signs what leaves (RFC 6376); one `[[dkim]]` table for each. All keys of the author's domain sign, one signature
    each. Mail that comes in on `submission` listeners is signed, and our own notices."""

    domain: Domain = Field(
        description="The signing domain, `d=`: that of the `From:` address, or a domain above it. `relaycluster dkim keygen`"
        " makes a key and prints its DNS record."
    )
    selector: Selector = Field(description="The selector, `s=`: the record is at `SELECTOR._domainkey.DOMAIN`.")
    key_file: FilePath = Field(
        description="The private key (PEM): RSA, of 2048 bits for today's receivers, or Ed25519. Changes hold within seconds; while it is"
        " wrong, the old keys stay."
    )
    fallback: Flag = _option(
        False,
        "Whether it signs also what comes from a domain without a key of its own. One domain may be the fallback.",
    )


class DNS(Section):
    """Where names are looked up."""

    servers: tuple[DNSServer, ...] = _option(
        (), "The resolvers to ask, by IP address, with a port where it is not 53. Empty: those of the system."
    )


class HTTP(Section):
    """The port for machines: `/metrics`, `/livez`, `/readyz`."""

    listen: OptionalListen = _option(
        "127.0.0.1:9025",
        "Where it listens. It has no access control: bind it where only your own machines reach. Empty: off.",
    )
    token_file: FilePath = _option(
        "", "A file with the token that will open the admin API. Nothing reads it in this release."
    )


class Log(Section):
    """The event log on standard output."""

    format: Literal["json", "text"] = _option("json", "One event a line, as JSON, or as words that a person reads.")


class Config(Section):
    """The whole file."""

    node: Node = Field(default_factory=Node)
    redis: Redis = Field(default_factory=Redis)
    listener: tuple[Listener, ...] = _option((DEFAULT_LISTENER,), "The listeners; without any: one on 127.0.0.1:2525.")
    tls: TLS = Field(default_factory=TLS)
    access: Access = Field(default_factory=Access)
    limits: Limits = Field(default_factory=Limits)
    delivery: Delivery = Field(default_factory=Delivery)
    destination: tuple[Destination, ...] = _option((), "The destinations that differ.")
    reply_rule: tuple[ReplyRule, ...] = _option((), "What replies mean where their codes do not say.")
    dkim: tuple[DKIM, ...] = _option((), "The keys that sign what leaves.")
    dns: DNS = Field(default_factory=DNS)
    http: HTTP = Field(default_factory=HTTP)
    log: Log = Field(default_factory=Log)

    def rules(self) -> ReplyRules:
        """What the replies of remote servers mean where their codes do not say: the operator's rules, then the shipped ones."""
        return rules_of(self.reply_rule, self.delivery.provider_rules)

    def routes(self) -> RouteTable:
        """Which settings hold for mail to which domain."""
        default = Destination().settings(self.delivery)
        return RouteTable.build(default, ((one.match, one.settings(self.delivery)) for one in self.destination))
