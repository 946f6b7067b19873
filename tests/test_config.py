"""The configuration: what is right is read exactly, and whatever is wrong is told, all of it, one line each."""

from __future__ import annotations

import re
import time
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycluster.config import Config, ConfigError, load, model, warnings
from relaycluster.config.model import DKIM, SNI, Listener
from relaycluster.config.values import (
    format_duration,
    format_size,
    parse_domain,
    parse_duration,
    parse_listen,
    parse_size,
)
from relaycluster.mail.envelope import MessageClass
from relaycluster.mail.outcome import Stage
from relaycluster.policy.bounce_class import BounceClass
from relaycluster.policy.pace import Suspend
from relaycluster.policy.rate import Rate
from relaycluster.policy.routing import HostPort
from relaycluster.policy.sources import Source
from relaycluster.policy.trouble import class_of, judge
from tests.support.replies import heard

REPOSITORY = Path(__file__).parents[1]


def read(path: Path, text: str, **environ: str) -> Config:
    file = path / "relay.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environ, host_name=lambda: "host.example.net")


def faults(path: Path, text: str, **environ: str) -> list[str]:
    """The lines of the error, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        read(path, text, **environ)
    lines = [line.removeprefix(f"{path / 'relay.toml'}: ") for line in caught.value.lines]
    assert all("\n" not in line and line.isprintable() for line in lines)
    return lines


# Values.


@given(st.one_of(st.integers(0, 10**8).map(float), st.floats(1e-6, 10**8)))
def test_durations_round_trip(seconds: float) -> None:
    """Any number of seconds that is written down is read back as the same number."""
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.integers(0, 1 << 60))
def test_sizes_round_trip(size: int) -> None:
    """Any number of bytes that is written down is read back as the same number."""
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("5min", 300),
        ("1h", 3600),
        ("5d", 432000),
        ("250ms", 0.25),
        ("1h30min", 5400),
        ("1.5h", 5400),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """The forms of a duration."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("25MiB", 25 << 20), ("500B", 500), ("1kB", 1000), ("1.5KiB", 1536), ("2 GiB", 2 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    """The forms of a size."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "10", "s", "10 parsecs", "-1s", "1e3s", "10m", "4000d", "1sx", "s1", "9" * 60 + "s"]
)
def test_no_durations(text: str) -> None:
    """Everything else is refused, with the fix."""
    with pytest.raises(ValueError, match=r"; write "):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "25", "MiB", "25mib", "-1B", "0.3B", "25 M iB", "9" * 60 + "B", "2000000TiB"])
def test_no_sizes(text: str) -> None:
    """Everything else is refused, with the fix."""
    with pytest.raises(ValueError, match=r"; write "):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("0.0.0.0:587", "0.0.0.0", 587),
        ("[::]:25", "::", 25),
        ("[::1]:0", "::1", 0),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
    ],
)
def test_listening_addresses(text: str, host: str, port: int) -> None:
    """An address to bind, written again as it was."""
    assert parse_listen(text) == HostPort(host, port)
    assert str(parse_listen(text)) == text


@pytest.mark.parametrize("text", ["", ":25", "25", "0.0.0.0", "localhost:25", "::1:25", "[::1]", "[127.0.0.1]:25", "1.2.3.4:65536", "1.2.3.4:x", "unix:/run/x"])  # fmt: skip
def test_no_listening_addresses(text: str) -> None:
    """Names, missing ports and brackets in the wrong place are refused, with the fix."""
    with pytest.raises(ValueError, match=r"; write "):
        parse_listen(text)


def test_domains() -> None:
    """Domains are lower case, and IDN are A-labels, as the queue's keys are."""
    assert parse_domain("Example.NET") == "example.net"
    assert parse_domain("bücher.example") == "xn--bcher-kva.example"
    for text in ("", "a_b.example", "-a.example", "a..b", "10.0.0.1", "x" * 64 + ".example", "a." * 130 + "example"):
        with pytest.raises(ValueError, match="is not a domain name"):
            parse_domain(text)


# A file that is right.


def test_defaults() -> None:
    """Without a file: one listener for this machine, an embedded Redis, state below the user's state directory."""
    config = load(None, {"HOME": "/home/x"}, host_name=lambda: "vm_1")
    assert config.node.state_dir == "/home/x/.local/state/relaycluster"
    assert load(None, {"XDG_STATE_HOME": "/s"}).node.state_dir == "/s/relaycluster"
    assert (config.node.id, config.node.hostname) == ("vm_1", "localhost")  # an underscore is not for host names
    assert config.redis.target.kind == "embedded"
    (listener,) = config.listener
    assert str(listener.address) == "127.0.0.1:2525"
    assert config.access.networks_for(listener) == (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    assert str(config.http.listen) == "127.0.0.1:9025"
    assert config.limits.message_size == 25 << 20
    assert config.delivery.retry == (60, 300, 900, 1800, 3600, 7200, 14400)
    assert config.delivery.rate_per_domain is None


def test_a_file(tmp_path: Path) -> None:
    """Every kind of value arrives as the program holds it."""
    config = read(
        tmp_path,
        """
        [node]
        roles = ["edge"]
        workers = "auto"
        weight = 2
        state_dir = "state"
        drain_deadline = "1min"
        [redis]
        url = "rediss://user%40x:p%2Fw@redis.example.net:6380/3"
        maxmemory = ""
        [[listener]]
        address = "[::]:25"
        mode = "mx"
        class = "urgent"
        [[listener]]
        address = "127.0.0.1:2525"
        [access]
        networks = ["192.0.2.0/24", "2001:db8::1"]
        relay_domains = ["example.net", "*.Example.org"]
        [limits]
        minimum_data_rate = "1KiB/s"
        [delivery]
        rate_per_domain = "100/s,burst=200"
        delay_notice = "0s"
        [[destination]]
        match = ["example.com", "*.example.com"]
        rate = "10/s"
        [[destination]]
        match = ["*"]
        hosts = ["10.1.1.1", "[::1]:2525", "smart.example.net:587"]
        connections = 5
        [dns]
        servers = ["127.0.0.1:5353", "::1"]
        [http]
        listen = ""
        """.replace('"::1"]', '"[::1]"]'),
    )
    assert config.node.id == config.node.hostname == "host.example.net"
    assert config.node.workers == 0
    assert config.node.state_dir == str(tmp_path / "state")
    target = config.redis.target
    assert (target.kind, target.host, target.port, target.database, target.tls) == (
        "tcp",
        "redis.example.net",
        6380,
        3,
        True,
    )
    assert (target.username, target.password) == ("user@x", "p/w")
    assert "p/w" not in repr(config) + repr(target)
    assert "p%2Fw" not in repr(config)
    mx, submission = config.listener
    assert mx.priority is MessageClass.URGENT
    assert config.access.networks_for(mx) == ()
    assert config.access.networks_for(submission) == (ip_network("192.0.2.0/24"), ip_network("2001:db8::1/128"))
    assert config.access.relay_domains == ("example.net", "*.example.org")
    assert config.limits.minimum_data_rate == 1024
    assert config.delivery.delay_notice == 0
    assert config.dns.servers == (HostPort("127.0.0.1", 5353), HostPort("::1", 53))
    assert config.http.listen is None
    routes = config.routes()
    assert routes.lookup("example.com").rate == Rate(10, 1)
    assert routes.lookup("a.example.com").limit_key("a.example.com") == "example.com"
    elsewhere = routes.lookup("example.edu")
    assert elsewhere.hosts == (HostPort("10.1.1.1", 25), HostPort("::1", 2525), HostPort("smart.example.net", 587))
    assert (elsewhere.rate, elsewhere.connections, elsewhere.tls) == (Rate(100, 1, 200), 5, "may")


def test_limits_for_all_domains_are_each_domains_own(tmp_path: Path) -> None:
    """`*` without a route is a default, not one provider: no domain waits for another one's limit."""
    routes = read(tmp_path, '[[destination]]\nmatch = ["*"]\nrate = "10/s"').routes()
    assert routes.lookup("example.com").limit_key("example.com") == "example.com"
    assert routes.lookup("example.com").rate == Rate(10, 1)


def test_destinations_say_how_mail_leaves(tmp_path: Path) -> None:
    """TLS and source addresses are delivery's where the table has none; all domains of a provider count under one name, which the operator
    may choose."""
    config = read(
        tmp_path,
        '[delivery]\ntls = "encrypt"\nsource_addresses = ["192.0.2.1 Mail1.example.net", "2001:DB8::1"]\n'
        '[[destination]]\nmx_suffix = ["protection.outlook.com"]\ntls = "verify"\n'
        '[[destination]]\nname = "partner"\nmatch = ["a.test", "b.test"]\nsource_addresses = []',
    )
    microsoft, partner = (one.settings(config.delivery) for one in config.destination)
    assert (microsoft.name, microsoft.tls, microsoft.mx_suffix) == (
        "protection.outlook.com",
        "verify",
        ("protection.outlook.com",),
    )
    assert microsoft.sources == (Source("192.0.2.1", "mail1.example.net"), Source("2001:db8::1"))
    assert (partner.tls, partner.sources) == ("encrypt", ())
    assert config.routes().lookup("b.test").limit_key("b.test") == "partner"
    assert config.delivery.notices_per_sender == Rate(1000, 3600, 1000)


def test_reply_rules(tmp_path: Path) -> None:
    """The operator's rules stand before those that are shipped, under their names or their places, and those can be left out."""
    text = (
        '[[reply_rule]]\nmatch = \'unusual rate\'\naction = "suspend:2h"\nmx_suffix = ["google.com"]\nclass = "other"\n'
        '[[reply_rule]]\nname = "mine"\nmatch = \'^450 .*later$\'\naction = "next_host"\nstage = ["rcpt"]\ndomain = ["*.a.test"]\n'
    )
    rules = read(tmp_path, text).rules()
    unusual = heard("421 4.7.28 Gmail has detected an unusual rate of mail from your IP address")
    verdict = judge(Stage.FINAL_DOT, unusual, "gmail-smtp-in.l.google.com", "gmail.com", rules)
    assert (verdict.rule, verdict.pace) == ("reply_rule[0]", Suspend(7200))
    assert class_of(verdict.outcome, "gmail.com", rules) is BounceClass.OTHER
    later = heard("450 come later")
    assert judge(Stage.RCPT, later, "mx", "x.a.test", rules).rule == "mine"
    assert judge(Stage.MAIL, later, "mx", "x.a.test", rules).rule == ""
    assert len(rules) > 40
    assert len(read(tmp_path, text + "[delivery]\nprovider_rules = false").rules()) == 2
    assert read(tmp_path, text).rules() == rules


def test_no_network_may_relay_on_a_public_listener_by_default(tmp_path: Path) -> None:
    """Loopback may relay on loopback listeners only: behind a proxy on the same host everybody comes from there."""
    config = read(tmp_path, '[[listener]]\naddress = "0.0.0.0:587"')
    assert config.access.networks_for(config.listener[0]) == ()


def test_the_password_file(tmp_path: Path) -> None:
    """A secret may stand in a file of its own, relative to the configuration; it must be there and hold something."""
    text = '[redis]\nurl = "redis://h"\npassword_file = "secret"'
    assert "cannot be read" in faults(tmp_path, text)[0]
    (tmp_path / "secret").write_text("hush\n")
    config = read(tmp_path, text)
    assert config.redis.target.password == "hush"
    assert "hush" not in repr(config)
    (tmp_path / "secret").write_text("\n")
    assert "one line" in faults(tmp_path, text)[0]
    (line,) = faults(tmp_path, text + '\npassword = "x"')
    assert line.startswith("redis.password: ")


def test_precedence(tmp_path: Path) -> None:
    """Command line before environment before file; numbers and lists of the environment are what TOML would have."""
    file = tmp_path / "relay.toml"
    file.write_text('[node]\nid = "file"\nweight = 3\n[[listener]]\naddress = "127.0.0.1:1025"\n[limits]\nerrors = 3')
    environ = {
        "RELAYCLUSTER_NODE__ID": "environment",
        "RELAYCLUSTER_NODE__ROLES": "delivery,edge",
        "RELAYCLUSTER_NODE__WEIGHT": "1.5",
        "RELAYCLUSTER_LIMITS__ERRORS": "7",
        "RELAYCLUSTER_LISTENER__0__CLASS": "bulk",
        "RELAYCLUSTER_LISTENER__1__ADDRESS": "127.0.0.1:1026",
        "RELAYCLUSTER_DELIVERY__RETRY": '["1s", "2s"]',
        "RELAYCLUSTER_REDIS__PASSWORD": "",
        "RELAYCLUSTER_HOME": "not ours",
        "PATH": "/bin",
    }
    config = load(file, environ, {"node.id": "command", "node.roles": ["edge"]})
    assert (config.node.id, config.node.roles, config.node.weight) == ("command", ("edge",), 1.5)
    assert (config.limits.errors, config.delivery.retry) == (7, (1, 2))
    assert [str(listener.address) for listener in config.listener] == ["127.0.0.1:1025", "127.0.0.1:1026"]
    assert config.listener[0].message_class == "bulk"
    assert load(file, {"RELAYCLUSTER_NODE__ID": "environment"}).node.id == "environment"
    assert load(file).node.id == "file"


def test_faults_of_the_environment_and_the_command_line_name_it(tmp_path: Path) -> None:
    """Nobody looks in the file for a value that came from elsewhere."""
    with pytest.raises(ConfigError) as caught:
        load(
            None,
            {
                "RELAYCLUSTER_LIMITS__ERRORS": "many",
                "RELAYCLUSTER_NODE__IDD": "x",
                "RELAYCLUSTER_LISTENER__7__MODE": "mx",
            },
            {"node.roles": ["edge", "cook"]},
        )
    text = "\n".join(sorted(caught.value.lines))
    assert text == (
        'command line: node.roles: \'cook\' is not known; write "edge" or "delivery"\n'
        "environment: RELAYCLUSTER_LIMITS__ERRORS: must be a whole number, is a string; write it without quotes and"
        " fraction\n"
        "environment: RELAYCLUSTER_LISTENER__7__MODE: there is no such table; number the tables from 0, without a gap\n"
        'environment: RELAYCLUSTER_NODE__IDD: unknown key; did you mean "id"?'
    )


# A file that is wrong.

WRONG = [
    # unknown keys
    ('[node]\nidd = "x"', 'node.idd: unknown key; did you mean "id"? (line 2)'),
    ("[access]\nrate_per_domain = 1", "access.rate_per_domain: unknown key; it belongs in [delivery] (line 2)"),
    ("[nodes]\nx = 1", 'nodes: unknown key; did you mean "node"? (line 1)'),
    ('[[listener]]\naddress = "127.0.0.1:25"\nclas = "bulk"', 'listener[0].clas: unknown key; did you mean "class"? (line 3)'),
    # types
    ("[node]\nid = 3", "node.id: must be a string, is a number (3); put it in quotes (line 2)"),
    ('[limits]\nrecipients = "5"', "limits.recipients: must be a whole number, is a string; write it without quotes and fraction (line 2)"),
    ("[limits]\nrecipients = true", "limits.recipients: must be a whole number, is a boolean (True); write it without quotes and fraction (line 2)"),
    ("[limits]\nmessage_size = 25", 'limits.message_size: must be a size in quotes, is a number (25); write a number and B, KiB, MiB, GiB or TiB, like "25MiB" (line 2)'),
    ("[redis]\nlease = 10", 'redis.lease: must be a duration in quotes, is a number (10); write a number and ms, s, min, h or d, like "10s" or "5min" (line 2)'),
    ('[node]\nroles = "edge"', 'node.roles: must be a list, is a string; write it in brackets, like ["…"], or as a [[table]] (line 2)'),
    ('[listener]\naddress = "127.0.0.1:25"', 'listener: must be a list, is a table; write it in brackets, like ["…"], or as a [[table]] (line 1)'),
    ("node = 3", "node: must be a table, is a number (3); write it as [node] (line 1)"),
    ('[[listener]]\nmode = "mx"', "listener[0].address: is missing; add it (line 1)"),
    ('[log]\nformat = "xml"', 'log.format: \'xml\' is not known; write "json" or "text" (line 2)'),
    ('[delivery]\nrate_per_domain = "fast"', 'delivery.rate_per_domain: \'fast\' is not a rate; write it like "100/s", "20/min", "3000/h" or "100/s,burst=200" (line 2)'),
    ("[delivery]\nretry = []", "delivery.retry: is empty; name at least one (line 2)"),
    ('[node]\nhostname = "a_b"', 'node.hostname: \'a_b\' is not a domain name; write it like "relay.example.net" (line 2)'),
    ('[node]\nid = "a b"', "node.id: 'a b' is not a node's name; use at most 64 letters, digits, '.', '_' and '-' (line 2)"),
    # ranges
    ('[delivery]\nidle = "0s"', "delivery.idle: is out of range; it must be more than 0s (line 2)"),
    ('[redis]\nlease = "500ms"', "redis.lease: is out of range; it must be at least 1s (line 2)"),
    ("[redis]\npartitions = 65536", "redis.partitions: is out of range; it must be at most 32768 (line 2)"),
    ("[redis]\npartitions = 1000", "redis.partitions: 1000 is not a power of two; write 512 or 1024 (line 2)"),
    ("[redis]\nmemory_watermark = 1", "redis.memory_watermark: is out of range; it must be less than 1 (line 2)"),
    ('[redis]\nmaxmemory = "1MiB"', "redis.maxmemory: is out of range; it must be at least 16MiB (line 2)"),
    # contradictions
    ('[delivery]\nlifetime = "30s"\ndelay_notice = "0s"', "delivery.lifetime: ends before the first retry after 1min; make it longer, like 5d (line 2)"),
    ('[delivery]\nlifetime = "4h"', "delivery.delay_notice: must be shorter than delivery.lifetime, or nobody gets it; shorten it, or write 0s for none (line 1)"),
    ('[[listener]]\naddress = "0.0.0.0:25"\n[[listener]]\naddress = "127.0.0.1:25"', "listener[1].address: 127.0.0.1:25 is taken by listener[0].address; choose another port (line 4)"),
    ('[http]\nlisten = "127.0.0.1:2525"', "http.listen: 127.0.0.1:2525 is taken by listener[0].address; choose another port (line 2)"),
    ('[[listener]]\naddress = "0.0.0.0:25"\nmode = "mx"', 'listener[0].mode: mode "mx" accepts mail for access.relay_domains only, and there are none; name them (line 3)'),
    ("listener = []", 'listener: an edge without a listener accepts nothing; add a [[listener]], or write roles = ["delivery"] (line 1)'),
    ('[[destination]]\nmatch = ["a.test"]\n[[destination]]\nmatch = ["A.test"]', "destination[1].match: 'a.test' stands in destination[0], too; keep it in one of them (line 4)"),
    ("[[destination]]\nconnections = 3", 'destination[0]: applies to nothing; add match = ["example.com"] (line 1)'),
    ('[redis]\nurl = "redis://h"\nmaxmemory = "1GiB"', "redis.maxmemory: is for the embedded Redis; set it in the configuration of the Redis that redis.url names (line 3)"),
    ('[redis]\npassword = "x"', "redis.password: the embedded Redis takes none; remove it (line 2)"),
    ('[redis]\nurl = "redis://u:p@h"\npassword = "x"', "redis.password: redis.url has a password, too; take it out of the URL (line 3)"),
    # open relays
    ('[access]\nnetworks = ["0.0.0.0/0"]', "access.networks[0]: 0.0.0.0/0 would make this an open relay; name only the networks of your own clients (line 2)"),
    ('[access]\nnetworks = ["10.0.0.0/8", "::/0"]', "access.networks[1]: ::/0 would make this an open relay; name only the networks of your own clients (line 2)"),
    ('[access]\nnetworks = ["128.0.0.0/1"]', "access.networks[0]: 128.0.0.0/1 would make this an open relay; name only the networks of your own clients (line 2)"),
    ('[access]\nnetworks = ["192.0.2.1/24"]', "access.networks[0]: '192.0.2.1/24' has bits behind its prefix; write \"192.0.2.0/24\" (line 2)"),
    ('[access]\nrelay_domains = ["*"]', 'access.relay_domains: accepting mail for "*" from anyone makes this an open relay; name your own domains (line 2)'),
    ('[[listener]]\naddress = "0.0.0.0:25"\nproxy_protocol_from = ["0.0.0.0/0"]', "listener[0].proxy_protocol_from[0]: 0.0.0.0/0 would let anybody pretend to be any client; name only your own load balancers (line 3)"),
    # TLS and AUTH
    ('[[listener]]\naddress = "0.0.0.0:465"\ntls = "implicit"', 'listener[0].tls: "implicit" needs a certificate; name tls.certificate and tls.key (line 3)'),
    ('[[listener]]\naddress = "0.0.0.0:587"\ntls = "starttls"', 'listener[0].tls: "starttls" needs a certificate; name tls.certificate and tls.key (line 3)'),
    ('[[listener]]\naddress = "0.0.0.0:587"\nrequire_tls = true', 'listener[0].require_tls: nobody could send: this listener has no TLS; set its tls to "starttls" or "implicit" (line 3)'),
    ('[[listener]]\naddress = "0.0.0.0:587"\nrequire_tls = "yes"', "listener[0].require_tls: must be true or false, is a string; write it without quotes (line 3)"),
    ('[tls]\ncertificate = "/dev/null"\nkey = "/dev/null"\n[[listener]]\naddress = "0.0.0.0:465"\ntls = "implicit"\nauth_without_tls = true', 'listener[0].auth_without_tls: never happens here, because tls is "implicit"; remove it (line 7)'),
    ('[tls]\ncertificate = "/dev/null"\nkey = "/dev/null"\n[[listener]]\naddress = "0.0.0.0:587"\ntls = "starttls"\nrequire_tls = true\nauth_without_tls = true', "listener[0].auth_without_tls: never happens here, because require_tls is set; remove it (line 8)"),
    ('[access]\nrelay_domains = ["a.test"]\n[[listener]]\naddress = "127.0.0.1:25"\nmode = "mx"\nauth_without_tls = true', 'listener[0].auth_without_tls: listeners of mode "mx" have no AUTH; remove it (line 6)'),
    ('[[tls.sni]]\ncertificate = "/dev/null"\nkey = "/dev/null"', "tls.sni: clients that name no host need a certificate, too; name tls.certificate and tls.key (line 1)"),
    ('[tls]\ncertificate = "/dev/null"\nkey = "/dev/null"\n[[tls.sni]]\ncertificate = "/dev/null"', "tls.sni[0].key: is missing; add it (line 4)"),
    ('[tls]\ncertificate = "/dev/null"\nkey = "/dev/null"\n[[tls.sni]]\ncertificate = "/dev/null"\nkey = "/nowhere/key"', "tls.sni[0].key: /nowhere/key cannot be read (No such file or directory); create it, or name another file (line 6)"),
    ('[tls]\ncertificate = "/dev/null"\nkey = "/dev/null"\n' + '[[tls.sni]]\nnames = ["*.A.test"]\ncertificate = "/dev/null"\nkey = "/dev/null"\n' * 2, "tls.sni[1].names: '*.a.test' stands in tls.sni[0], too; keep it in one of them (line 9)"),
    ('[tls]\ncertificate = "/dev/null"\nkey = "/dev/null"\n[[tls.sni]]\nnames = ["*"]\ncertificate = "/dev/null"\nkey = "/dev/null"', 'tls.sni[0].names[0]: "*" is not a name in a certificate; tls.certificate is for all other names (line 5)'),
    ('[tls]\ncertificate = "/dev/null"\nkey = "/dev/null"\n[[tls.sni]]\ncertficate = "x"\ncertificate = "/dev/null"\nkey = "/dev/null"', 'tls.sni[0].certficate: unknown key; did you mean "certificate"? (line 5)'),
    # DKIM
    ('[[dkim]]\ndomain = "a.test"\nselector = "s1"', "dkim[0].key_file: is missing; add it (line 1)"),
    ('[[dkim]]\ndomain = "a.test"\nselector = "s 1"\nkey_file = "/dev/null"', "dkim[0].selector: 's 1' is not a selector; use letters, digits and hyphens, like \"s2026\" (line 3)"),
    ('[[dkim]]\ndomain = "a.test"\nselector = "s"\nkey_file = "/nowhere/k"', "dkim[0].key_file: /nowhere/k cannot be read (No such file or directory); create it, or name another file (line 4)"),
    ('[[dkim]]\ndomain = "A.test"\nselector = "S"\nkey_file = "/dev/null"\n' * 2, "dkim[1].selector: s._domainkey.a.test is dkim[0]'s, too; give each key its own selector (line 7)"),
    ("".join(f'[[dkim]]\ndomain = "{d}.test"\nselector = "{s}"\nkey_file = "/dev/null"\nfallback = true\n' for d, s in ("ax", "ay", "bx")), "dkim[2].fallback: dkim[0] is the fallback for another domain; only one domain can be (line 15)"),
    # limits
    ('[limits]\nmessages_per_client = "many"', 'limits.messages_per_client: \'many\' is not a rate; write it like "100/s", "20/min", "3000/h" or "100/s,burst=200" (line 2)'),
    ("[limits]\nconnection_rate_per_client = 3", 'limits.connection_rate_per_client: must be a rate in quotes, is a number (3); write it like "60/min" (line 2)'),
    ("[limits]\nstress_at = 1.5", "limits.stress_at: is out of range; it must be at most 1 (line 2)"),
    ('[limits]\nheader_size = "1MiB"', "limits.header_size: is out of range; it must be at most 252KiB (line 2)"),
    # files
    ('[tls]\ncertificate = "/dev/null"', "tls.key: is missing beside the other one; name both files (line 1)"),
    ('[access]\nusers_file = "/nowhere/users"', "access.users_file: /nowhere/users cannot be read (No such file or directory); create it, or name another file (line 2)"),
    ('[node]\nstate_dir = "/dev/null"', "node.state_dir: /dev/null is not a directory; name one (line 2)"),
    # what a later release keeps
    ('[redis]\ndurability = "replicas:1"', "redis.durability: not available yet: waiting for replicas ('replicas:1'); write \"fsync\" (line 2)"),
    ('[redis]\nurl = "sentinel://u:p@h:26379/name"', 'redis.url: not available yet: Redis Sentinel; name one Redis, like "redis://host:6379" (line 2)'),
    ('[journal]\nmode = "on"', "journal.mode: not available yet: the acceptance journal; remove it (line 2)"),
    ('[delivery]\ntls = "must"', 'delivery.tls: \'must\' is not known; write "none", "may", "encrypt" or "verify" (line 2)'),
    ('[delivery]\nsource_addresses = ["mail.example.net"]', "delivery.source_addresses[0]: 'mail.example.net' does not begin with an address to connect from; write an IP address of this host, and its name for EHLO where it has its own: \"192.0.2.1 mail1.example.net\" (line 2)"),
    ('[delivery]\nsource_addresses = ["192.0.2.1 a b"]', "delivery.source_addresses[0]: '192.0.2.1 a b': 'a b' is not a host name; write an IP address of this host, and its name for EHLO where it has its own: \"192.0.2.1 mail1.example.net\" (line 2)"),
    ('[[destination]]\nmatch = ["a.test"]\nsource_addresses = ["192.0.2.1", "192.0.2.1 a.test"]', "destination[0].source_addresses: names 192.0.2.1 twice; name each address once (line 3)"),
    ('[delivery]\nnotices_per_sender = "many"', 'delivery.notices_per_sender: \'many\' is not a rate; write it like "100/s", "20/min", "3000/h" or "100/s,burst=200" (line 2)'),
    ('[delivery]\nca_file = "/nowhere/ca.pem"', "delivery.ca_file: /nowhere/ca.pem cannot be read (No such file or directory); create it, or name another file (line 2)"),
    ('[[destination]]\nmx_suffix = ["a.test"]\nhosts = ["10.0.0.1"]', "destination[0].mx_suffix: a route has no MX hosts to look at; put the suffixes into a table of their own (line 2)"),
    ('[[destination]]\nmatch = ["*"]\nmx_suffix = ["a.test"]', 'destination[0].mx_suffix: match = ["*"] covers all domains anyway; put the suffixes into a table of their own (line 3)'),
    ('[[destination]]\nmx_suffix = ["a.test"]\n[[destination]]\nmx_suffix = ["A.test"]', "destination[1].mx_suffix: 'a.test' stands in destination[0], too; keep it in one of them (line 4)"),
    ('[[destination]]\nmatch = ["a.test"]\nname = "big one"', "destination[0].name: 'big one' is not a name; use at most 64 letters, digits, '.', '_', '-' and '*' (line 3)"),
    ('[[destination]]\nmatch = ["*"]\nname = "all"', 'destination[0].name: under match = ["*"] without hosts each domain is counted by itself; remove it (line 3)'),
    ('[[destination]]\nmatch = ["a.test"]\nname = "x"\n[[destination]]\nmatch = ["b.test"]\nname = "x"', "destination[1].name: 'x' is destination[0]'s name, too; give each its own (line 6)"),
    ('[[destination]]\nmatch = ["a.test"]\n[[destination]]\nmx_suffix = ["a.test"]', "destination[1].name: 'a.test' is destination[0]'s name, too; give each its own (line 3)"),
    ('[[reply_rule]]\naction = "fail"', "reply_rule[0].match: is missing; add it (line 1)"),
    ('[[reply_rule]]\nmatch = "(a"', "reply_rule[0].match: '(a' is not a pattern: missing ): (a; write \\ before a sign that stands for itself (line 2)"),
    ('[[reply_rule]]\nmatch = "a*"', "reply_rule[0].match: 'a*' matches every text; write what must occur in it (line 2)"),
    ('[[reply_rule]]\nmatch = "a"\naction = "stop"', 'reply_rule[0].action: \'stop\' is not an action; write "slow_down", "suspend:15min", "defer", "fail", "next_host" or "as_said" (line 3)'),
    ('[[reply_rule]]\nmatch = "a"\naction = "suspend:soon"', "reply_rule[0].action: 'soon' is not a duration; write a number and ms, s, min, h or d, like \"10s\" or \"5min\" (line 3)"),
    ('[[reply_rule]]\nmatch = "a"\naction = "suspend:30d"', "reply_rule[0].action: 'suspend:30d': a suspension lasts from 1s to 7d; write it like \"suspend:15min\" (line 3)"),
    ('[[reply_rule]]\nmatch = "a"\nstage = ["rcpt", "connect"]', "reply_rule[0].stage[1]: 'connect' is not a stage; use greeting, ehlo, tls, mail, rcpt, data, final-dot (line 3)"),
    ('[[reply_rule]]\nmatch = "a"\nmx_sufix = ["a.test"]', 'reply_rule[0].mx_sufix: unknown key; did you mean "mx_suffix"? (line 3)'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), WRONG, ids=[line.partition(": ")[0] for _, line in WRONG])
def test_a_fault_is_one_line_with_key_and_fix(tmp_path: Path, text: str, line: str) -> None:
    """Each thing that can be wrong: exactly this line, and only this."""
    assert faults(tmp_path, text) == [line]


@pytest.mark.parametrize(
    "url",
    [
        "redis:",
        "http://h",
        "redis://",
        "redis://h:x",
        "redis://h:0",
        "redis://h/x",
        "redis://h?x=1",
        "unix://run",
        "redis://[::1",
        "/run/redis",
    ],
)
def test_a_wrong_url_is_refused_without_repeating_it(tmp_path: Path, url: str) -> None:
    """A URL may hold a password."""
    secret = url.replace("//", "//u:secret@", 1)
    (line,) = faults(tmp_path, f'[redis]\nurl = "{secret}"')
    assert line.startswith("redis.url: ")
    assert "; write " in line
    assert "secret" not in line


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """A typo does not hide a contradiction, and a bad value makes no false one."""
    lines = faults(
        tmp_path,
        '[node]\nidd = "x"\n[redis]\npartitions = 3\n[delivery]\nlifetime = "never"\ndelay_notice = "9d"\n'
        '[[listener]]\naddress = "nowhere"\n[access]\nnetworks = ["0.0.0.0/0", "x"]\n[http]\nlisten = "127.0.0.1:2525"',
    )
    assert [line.partition(":")[0] for line in lines] == [
        "node.idd", "redis.partitions", "delivery.lifetime", "listener[0].address", "access.networks[0]", "access.networks[1]",
    ]  # fmt: skip


def test_what_asks_for_nothing_is_no_fault(tmp_path: Path) -> None:
    """Keys of a later release may stand in the file with values that need nothing of it."""
    config = read(
        tmp_path,
        'reply_rule = []\n[journal]\nmode = "auto"\nsize = "2GiB"\n[delivery]\nsource_addresses = []\nnotices_per_sender = ""',
    )
    assert (config.delivery.tls, config.delivery.notices_per_sender) == ("may", None)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """No file, no TOML, no UTF-8: one line each."""
    with pytest.raises(ConfigError, match=r"^/nowhere/x: cannot be read: No such file or directory; [^\n]+$"):
        load("/nowhere/x")
    assert faults(tmp_path, "[node\nx")[0].startswith("is not TOML: ")
    assert faults(tmp_path, "x = " + "[" * 5000)[0].startswith("is not TOML: ")
    (tmp_path / "relay.toml").write_bytes(b'[node]\nid = "\xff"')
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        load(tmp_path / "relay.toml")


values = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 99999), st.text(max_size=12), st.sampled_from(["10s", "1MiB", "10/s", "a.test", "127.0.0.1:25"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["match", "address", "x"]), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
sections = sorted([*Config.model_fields, "journal", "other"])
tables = [getattr(model, name) for name in ("Node", "Redis", "Limits", "Delivery", "Access", "TLS")]
keys = sorted({key for table in (*tables, Listener, DKIM, SNI) for key in (*table.model_fields, "class")})
inner_tables = st.dictionaries(st.sampled_from(keys), values, max_size=4)
anything = st.one_of(
    values,
    inner_tables,
    st.lists(inner_tables, max_size=3),
    st.builds(lambda inner, more: {**more, "sni": inner}, st.lists(inner_tables, max_size=3), inner_tables),
)


@settings(deadline=None)  # a round for each fault found: slow on a busy machine
@given(st.dictionaries(st.sampled_from(sections), anything, max_size=5))
def test_no_content_raises_anything_but_config_error(raw: dict[str, object]) -> None:
    """Whatever TOML can hold ends in a configuration or in lines for the operator."""
    lines = ["nothing is wrong"]
    try:
        load(None, {}, {"node.id": "x", **raw})
    except ConfigError as error:
        lines = error.lines
    assert lines
    assert all("\n" not in line for line in lines)


def test_a_thousand_destinations_load_quickly(tmp_path: Path) -> None:
    """Reading grows with the file, not with its square: ten times the tables cost less than thirty times the time."""

    def seconds(tables: int) -> float:
        text = "".join(
            f'[[destination]]\nmatch = ["d{n}.test"]\nhosts = ["127.0.0.1:{n + 1}"]\n' for n in range(tables)
        )
        best = float("inf")
        for _ in range(3):
            before = time.perf_counter()
            assert read(tmp_path, text).routes().lookup(f"d{tables - 1}.test").hosts == (HostPort("127.0.0.1", tables),)
            best = min(best, time.perf_counter() - before)
        return best

    assert seconds(3000) < 30 * seconds(300)


def test_the_reported_values_are_frozen() -> None:
    """Nothing in the program changes the configuration."""
    with pytest.raises(ValueError, match="frozen"):
        Config().node.id = "other"


def test_warnings(tmp_path: Path) -> None:
    """What works, and should be known."""
    for name in ("users", "secret", "key"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o644)
    config = read(
        tmp_path,
        '[node]\nhostname = "relay"\nworkers = 4\n[redis]\nurl = "redis://h"\ndurability = "memory"\npassword_file = "secret"\n'
        '[[listener]]\naddress = "0.0.0.0:465"\nmode = "mx"\ntls = "starttls"\nrequire_tls = true\n'
        '[[listener]]\naddress = "0.0.0.0:587"\ntls = "none"\n[access]\nusers_file = "users"\nrelay_domains = ["a.test"]\n'
        '[limits]\nrecipients = 5\n[tls]\ncertificate = "key"\nkey = "key"\n[[destination]]\nmx_suffix = ["outlook.com"]\n'
        '[[tls.sni]]\ncertificate = "key"\nkey = "key"\n[[dkim]]\ndomain = "a.test"\nselector = "s"\nkey_file = "key"',
    )
    assert [line.partition(":")[0] for line in warnings(config)] == [
        "node.workers", "node.hostname", "redis.durability", "listener[0].require_tls", "listener[0].tls", "access.users_file",
        "limits.recipients", "redis.password_file", "tls.key", "access.users_file",
        "tls.sni[0].key", "dkim[0].key_file",
    ]  # fmt: skip


def test_passwords_in_clear_are_warned_of_where_others_listen(tmp_path: Path) -> None:
    """On loopback nobody else is on the way; and a listener in clear that offers AUTH makes the users file useful."""
    (tmp_path / "users").touch(0o600)
    text = (
        '[node]\nhostname = "a.test"\n[access]\nusers_file = "users"\n[[listener]]\nauth_without_tls = true\naddress = '
    )
    assert warnings(read(tmp_path, text + '"127.0.0.1:2525"')) == []
    (line,) = warnings(read(tmp_path, text + '"192.0.2.1:2525"'))
    assert line.startswith("listener[0].auth_without_tls: passwords cross the network in clear; ")


def test_balancers_among_the_clients(tmp_path: Path) -> None:
    """Whoever comes through a balancer that is in an allowed network might be anybody: it is said, on listeners for submission."""
    text = (
        '[node]\nhostname = "a.test"\n[access]\nnetworks = ["10.0.0.0/24"]\nrelay_domains = ["b.test"]\n[[listener]]\naddress = '
        '"192.0.2.1:2525"\nproxy_protocol_from = '
    )
    assert warnings(read(tmp_path, text + '["10.0.1.1/32", "2001:db8::/64"]')) == []
    assert warnings(read(tmp_path, text + '["10.0.0.1/32"]\nmode = "mx"')) == []
    single, network = warnings(read(tmp_path, text + '["10.0.0.1/32", "10.0.0.0/16"]'))
    assert single.startswith("listener[0].proxy_protocol_from: 10.0.0.1/32 lies in 10.0.0.0/24 of access.networks; ")
    assert network.startswith("listener[0].proxy_protocol_from: 10.0.0.0/16 overlaps 10.0.0.0/24 of access.networks; ")


def test_the_edge(tmp_path: Path) -> None:
    """TLS, PROXY, limits and keys arrive as the program holds them; every path is relative to the file."""
    for name in ("chain", "key", "dkim.pem", "aliases", "users"):
        (tmp_path / name).touch(0o600)
    config = read(
        tmp_path,
        """
        [[listener]]
        address = "0.0.0.0:587"
        tls = "starttls"
        require_tls = true
        proxy_protocol_from = ["10.0.0.0/8", "2001:db8::1"]
        [tls]
        certificate = "chain"
        key = "key"
        minimum = "1.3"
        [[tls.sni]]
        names = ["MX.example.org", "*.example.org"]
        certificate = "chain"
        key = "key"
        [[tls.sni]]
        certificate = "/dev/null"
        key = "/dev/null"
        [access]
        users_file = "users"
        aliases_file = "aliases"
        [limits]
        messages_per_client = "1000/h"
        connection_rate_per_client = "60/min,burst=5"
        header_size = "64KiB"
        bare_newline = "normalize"
        stress_at = 1
        [[dkim]]
        domain = "Example.net"
        selector = "S1"
        key_file = "dkim.pem"
        fallback = true
        """,
    )
    listener = config.listener[0]
    assert (listener.tls, listener.require_tls, listener.auth_without_tls) == ("starttls", True, False)
    assert listener.proxy_protocol_from == (ip_network("10.0.0.0/8"), ip_network("2001:db8::1/128"))
    first, second = config.tls.sni
    assert first.names == ("mx.example.org", "*.example.org")
    assert (first.certificate, first.key) == (str(tmp_path / "chain"), str(tmp_path / "key"))
    assert (second.names, second.certificate) == ((), "/dev/null")
    assert config.access.aliases_file == str(tmp_path / "aliases")
    assert config.limits.messages_per_client == Rate(1000, 3600, 1000)
    assert config.limits.connection_rate_per_client == Rate(60, 60, 5)
    assert (config.limits.header_size, config.limits.stress_at) == (65536, 1)
    (key,) = config.dkim
    assert (key.domain, key.selector, key.key_file, key.fallback) == (
        "example.net",
        "s1",
        str(tmp_path / "dkim.pem"),
        True,
    )


def test_the_environment_reaches_nested_tables(tmp_path: Path) -> None:
    """A certificate of a name and a key's path can be overridden like every other value; paths are then those of the caller."""
    (tmp_path / "chain").touch()
    text = '[tls]\ncertificate = "chain"\nkey = "chain"\n[[tls.sni]]\ncertificate = "chain"\nkey = "chain"'
    environ = {
        "RELAYCLUSTER_TLS__SNI__0__KEY": "/dev/null",
        "RELAYCLUSTER_TLS__SNI__0__NAMES": "a.test,b.test",
        "RELAYCLUSTER_LISTENER__0__ADDRESS": "127.0.0.1:25",
        "RELAYCLUSTER_LISTENER__0__TLS": "starttls",
        "RELAYCLUSTER_LISTENER__0__REQUIRE_TLS": "true",
        "RELAYCLUSTER_LISTENER__0__PROXY_PROTOCOL_FROM": "10.0.0.1,10.0.0.2",
    }
    config = read(tmp_path, text, **environ)
    assert (config.tls.sni[0].key, config.tls.sni[0].names) == ("/dev/null", ("a.test", "b.test"))
    assert (config.listener[0].require_tls, len(config.listener[0].proxy_protocol_from)) == (True, 2)
    with pytest.raises(ConfigError, match="REQUIRE_TLS: must be true or false"):
        read(tmp_path, text, **environ, RELAYCLUSTER_LISTENER__1__REQUIRE_TLS="yes")


def hand_out(directory: Path, *files: str) -> Path:
    """The example as an operator has it, with the files that it names."""
    for name in ("tls/fullchain.pem", "tls/privkey.pem", "users", *files):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("x")
        (directory / name).chmod(0o600)
    path = directory / "relaycluster.toml"
    path.write_text((REPOSITORY / "deploy" / "relaycluster.example.toml").read_text())
    return path


def test_the_example_is_right(tmp_path: Path) -> None:
    """What we hand out as an example is read without a fault or a warning once its files are there, and shows all four ports
    with TLS; before that, check-config names each missing file."""
    config = load(hand_out(tmp_path))
    assert warnings(config) == []
    assert [(listener.address.port, listener.mode, listener.tls) for listener in config.listener] == [
        (25, "mx", "starttls"),
        (465, "submission", "implicit"),
        (587, "submission", "starttls"),
        (2525, "submission", "starttls"),
    ]
    with pytest.raises(ConfigError) as caught:
        load(REPOSITORY / "deploy" / "relaycluster.example.toml")
    assert [line.split(": ")[1] for line in caught.value.lines] == ["tls.certificate", "tls.key", "access.users_file"]


def test_the_example_with_everything_that_it_offers(tmp_path: Path) -> None:
    """Its commented options are right, too."""
    path = hand_out(
        tmp_path,
        "redis-password",
        "tls/partners.pem",
        "tls/example.org.pem",
        "tls/example.org.key",
        "aliases",
        "dkim/s1.pem",
    )
    text = path.read_text().replace('url = "embedded"', "")
    text = re.sub(r"^# (?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    config = read(tmp_path, text)
    assert config.redis.target.password == "x"
    assert config.tls.sni[0].key == str(tmp_path / "tls/example.org.key")
    assert config.dkim[0].fallback
    assert config.access.aliases_file
    assert config.limits.messages_per_client == Rate(1000, 3600, 1000)
    assert len(config.listener[0].proxy_protocol_from) == 2
    assert len(config.destination) == 3
    assert config.destination[1].mx_suffix
    assert config.reply_rule[0].bounce_class is BounceClass.SPAM_RELATED
    assert [source.hostname for source in config.delivery.source_addresses] == ["mail1.example.net"] * 2
