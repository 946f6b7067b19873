"""From the configuration to each floor: every option arrives, and a reload changes what it can and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from relaycluster.app import settings
from relaycluster.config import Config, load
from relaycluster.config.values import Network
from relaycluster.mail.envelope import MessageClass
from relaycluster.policy.rate import Rate
from relaycluster.smtp.server_settings import BareNewline

BASE = """
[access]
users_file = "/dev/null"
relay_domains = ["example.net"]
networks = ["192.0.2.0/24"]
[tls]
certificate = "/dev/null"
key = "/dev/null"
[[listener]]
address = "0.0.0.0:25"
mode = "mx"
tls = "starttls"
[[listener]]
address = "0.0.0.0:465"
tls = "implicit"
[[listener]]
address = "0.0.0.0:587"
tls = "starttls"
require_tls = true
class = "urgent"
proxy_protocol_from = ["10.0.0.0/8"]
[[listener]]
address = "127.0.0.1:2525"
auth_without_tls = true
class = "bulk"
[limits]
message_size = "1MiB"
recipients = 7
errors = 3
connections = 10
"""


def read(directory: Path, text: str) -> Config:
    file = directory / "relay.toml"
    file.write_text(text)
    return load(file, {}, host_name=lambda: "host.example.net")


def test_what_each_listener_offers(tmp_path: Path) -> None:
    """TLS within the session, insistence on it, and AUTH: on submission listeners with a users file only."""
    config = read(tmp_path, BASE)
    offered = [settings.server_settings(config, listener) for listener in config.listener]
    assert [(each.starttls, each.require_tls, each.auth, each.auth_without_tls) for each in offered] == [
        (True, False, False, False),
        (False, False, True, False),
        (True, True, True, False),
        (False, False, True, True),
    ]
    assert {(each.hostname, each.message_size_bytes, each.recipients, each.errors) for each in offered} == {
        ("host.example.net", 1 << 20, 7, 3)
    }
    without = read(tmp_path, BASE.replace("users_file", "aliases_file"))
    assert not any(settings.server_settings(without, listener).auth for listener in without.listener)


def test_bare_newlines(tmp_path: Path) -> None:
    """Both words of the configuration are the conversation's."""
    config = read(tmp_path, BASE)
    assert settings.server_settings(config, config.listener[0]).bare_newline is BareNewline.REJECT
    config = read(tmp_path, BASE + 'bare_newline = "normalize"')
    assert settings.server_settings(config, config.listener[0]).bare_newline is BareNewline.NORMALIZE


def test_session_limits(tmp_path: Path) -> None:
    """A rate of connections, and stress from a part of the slots on; all of them is never."""
    limits = settings.session_limits(read(tmp_path, BASE))
    assert (limits.connections, limits.connection_rate_per_client, limits.stress_at) == (10, None, 0.8)
    limits = settings.session_limits(
        read(tmp_path, BASE + 'connection_rate_per_client = "30/min,burst=9"\nstress_at = 1.0')
    )
    assert limits.connection_rate_per_client == Rate(30, 60, 9)
    assert limits.stress_at == limits.stress_from == math.inf


def test_the_edge(tmp_path: Path) -> None:
    """Classes by listener, and what a header and a client may be."""
    edge = settings.edge_settings(read(tmp_path, BASE + 'messages_per_client = "100/h"\nheader_size = "64KiB"'))
    assert edge.classes == {
        "0.0.0.0:25": MessageClass.NORMAL,
        "0.0.0.0:465": MessageClass.NORMAL,
        "0.0.0.0:587": MessageClass.URGENT,
        "127.0.0.1:2525": MessageClass.BULK,
    }
    assert (edge.hostname, edge.header_size, edge.header_fields) == ("host.example.net", 65536, 1000)
    assert edge.messages_per_client == Rate(100, 3600, 100)


def test_a_balancer_is_no_client(tmp_path: Path) -> None:
    """The networks that may relay are those of the configuration, also where a balancer's are among them: it is the session's `via`
    that takes its own address out (node/access.py)."""
    config = read(tmp_path, BASE.replace("192.0.2.0/24", "10.0.0.0/8"))
    access = settings.access(config)
    assert access.may_relay("0.0.0.0:587", "10.1.1.1", "10.0.0.9")
    assert not access.may_relay("0.0.0.0:587", "10.0.0.9", "10.0.0.9")
    trusted: tuple[Network, ...] = config.listener[2].proxy_protocol_from
    assert [str(network) for network in trusted] == ["10.0.0.0/8"]


def test_where_we_listen(tmp_path: Path) -> None:
    """A listener on every address is on each of this machine's, of both families, at its own port; another on its address alone."""
    ours = {"198.51.100.1", "2001:db8::1"}
    is_own = settings.own_listeners(read(tmp_path, BASE), ours.__contains__)
    for address in (*ours, "127.0.0.1", "::1", "0.0.0.0"):
        assert is_own(address, 25), address
        assert not is_own(address, 26), address
    assert is_own("127.0.0.1", 2525)
    assert not is_own("198.51.100.1", 2525)
    assert not is_own("198.51.100.2", 25)
    assert not is_own("2001:db8::2", 25)
    by_ipv6 = settings.own_listeners(read(tmp_path, '[[listener]]\naddress = "[::]:25"\n'), ours.__contains__)
    assert all(by_ipv6(address, 25) for address in ours)


def test_without_the_edge_nothing_listens(tmp_path: Path) -> None:
    """The listeners of a file that all nodes share are not those of a node that delivers only: somebody else may be there."""
    is_own = settings.own_listeners(read(tmp_path, BASE + '[node]\nroles = ["delivery"]\n'), lambda _: True)
    assert not is_own("198.51.100.1", 25)
    assert not is_own("127.0.0.1", 2525)


RELOADABLE = [
    ("192.0.2.0/24", "198.51.100.0/24"),
    ("example.net", "example.org"),
    ('users_file = "/dev/null"', ""),
    ("recipients = 7", "recipients = 8"),
    ("auth_without_tls = true", ""),
    ("require_tls = true", ""),
    ('class = "urgent"', 'class = "bulk"'),
    ('mode = "mx"\ntls = "starttls"', 'mode = "mx"'),
    ("10.0.0.0/8", "10.0.0.0/9"),
    ('key = "/dev/null"', 'key = "/dev/zero"'),
    ("[limits]", '[[dkim]]\ndomain = "a.test"\nselector = "s"\nkey_file = "/dev/null"\n[limits]'),
    ("[limits]", '[[tls.sni]]\ncertificate = "/dev/null"\nkey = "/dev/null"\n[limits]'),
    ("[limits]", '[delivery]\nlifetime = "3d"\n[[destination]]\nmatch = ["a.test"]\n[limits]'),
]


@pytest.mark.parametrize(("before", "after"), RELOADABLE)
def test_what_a_reload_changes(tmp_path: Path, before: str, after: str) -> None:
    """Everything but sockets and this process's place in the cluster."""
    assert before in BASE
    old, new = read(tmp_path, BASE), read(tmp_path, BASE.replace(before, after))
    assert old != new
    assert settings.restart_needed(old, new) == []
    assert settings.restart_needed(new, old) == []


FIXED = [
    ("[limits]", '[node]\nid = "other"\n[limits]', ["node"]),
    ("[limits]", '[redis]\nurl = "redis://h"\n[http]\nlisten = ""\n[limits]', ["redis", "http"]),
    ("[limits]", '[log]\nformat = "text"\n[dns]\nservers = ["192.0.2.53"]\n[limits]', ["dns", "log"]),
    ('key = "/dev/null"', 'key = "/dev/null"\nminimum = "1.3"', ["tls.minimum"]),
    ("0.0.0.0:465", "0.0.0.0:466", ["listener"]),
    ("[limits]", '[[listener]]\naddress = "127.0.0.1:26"\n[limits]', ["listener"]),
    ('mode = "mx"', 'mode = "submission"', ["listener[0].mode"]),
    ('tls = "implicit"', 'tls = "starttls"', ["listener[1].tls"]),
    ('proxy_protocol_from = ["10.0.0.0/8"]', "", ["listener[2].proxy_protocol_from"]),
]


@pytest.mark.parametrize(("before", "after", "keys"), FIXED)
def test_what_needs_a_restart(tmp_path: Path, before: str, after: str, keys: list[str]) -> None:
    """Each such key is named, in both directions."""
    assert before in BASE
    old, new = read(tmp_path, BASE), read(tmp_path, BASE.replace(before, after))
    for one, other in ((old, new), (new, old)):
        lines = settings.restart_needed(one, other)
        assert [line.partition(": ")[0] for line in lines] == keys
        assert all("restart" in line for line in lines)


def test_the_order_of_listeners_is_nothing(tmp_path: Path) -> None:
    """They are known by their addresses."""
    old = read(tmp_path, BASE)
    parts = BASE.split("[[listener]]")
    new = read(tmp_path, "[[listener]]".join([parts[0], parts[2], parts[1], *parts[3:]]))
    assert [listener.address.port for listener in new.listener] == [465, 25, 587, 2525]
    assert settings.restart_needed(old, new) == []


def test_tls_begins_with_a_restart(tmp_path: Path) -> None:
    """A node without a certificate has nothing to reload one into."""
    text = '[[listener]]\naddress = "127.0.0.1:25"\n'
    old, new = read(tmp_path, text), read(tmp_path, text + '[tls]\ncertificate = "/dev/null"\nkey = "/dev/null"')
    assert settings.restart_needed(old, new) == ["tls.certificate: to begin or end with TLS needs a restart"]
