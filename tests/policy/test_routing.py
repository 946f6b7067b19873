"""Routes, the order of hosts, and the texts that name hosts."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.policy import routing
from relaycluster.policy.host_names import is_host_name, is_usable_address, literal_address
from relaycluster.policy.routing import (
    MX,
    DestinationSettings,
    HostPort,
    RouteTable,
    alternate,
    order_addresses,
    order_hosts,
    parse_host_port,
)

DEFAULTS = DestinationSettings()


def unmoved(_: list[MX]) -> None:
    """A shuffle that leaves the order alone."""


def destination(name: str) -> DestinationSettings:
    return DestinationSettings(name=name)


# Host and port.


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.1.1.1:25", "10.1.1.1", 25),
        ("10.1.1.1", "10.1.1.1", 25),
        ("[::1]:2525", "::1", 2525),
        ("[2001:DB8:0::1]", "2001:db8::1", 25),
        ("[10.1.1.1]:26", "10.1.1.1", 26),
        ("mx.example.net", "mx.example.net", 25),
        ("MX.Example.Net.", "mx.example.net", 25),
        ("mx.example.net:587", "mx.example.net", 587),
        ("localhost:1", "localhost", 1),
        (" mx.example.net:65535 ", "mx.example.net", 65535),
    ],
)
def test_host_and_port_as_the_configuration_writes_them(text: str, host: str, port: int) -> None:
    """Every form of the contract is read; the port is 25 where none is written."""
    assert parse_host_port(text) == HostPort(host, port)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":25",
            "::1",
            "::1:25",
            "[::1",
            "[]:25",
            "[mx.example.net]:25",
            "mx..example.net",
            "10.1.1.300",
            "10.1.1",
        ),
        *("host:", "host:0", "host:65536", "host:25x", "host:+25", "host:٢٥", "[::1]25", "[::1]:", "bücher.example"),
        *("a b", "host:999999999999999999999", "-" * 64, "mx.example.net\n.x"),
    ],
)
def test_what_is_no_host_and_port_is_said_so(text: str) -> None:
    """A mistake in a route is one ValueError with a sentence that quotes it."""
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_host_port(text)


@given(st.text(max_size=40))
def test_any_text_is_a_host_and_port_or_a_value_error(text: str) -> None:
    """No text raises anything else, and what is read is written so that it reads the same."""
    try:
        parsed = parse_host_port(text)
    except ValueError:
        return
    assert parse_host_port(str(parsed)) == parsed


# Names and literals.


def test_host_names() -> None:
    """What DNS can be asked for: labels of 1 to 63 octets, 253 in all, no address in disguise."""
    for name in ("example.test", "a", "x-1._dmarc.example", "a" * 63 + ".test", "1and1.test", ".".join(["a" * 49] * 5)):
        assert is_host_name(name), name
    for name in (
        *("", ".", "a..b", ".a", "a.", "a" * 64 + ".test", ".".join(["a" * 63] * 4), "192.0.2.1", "x.42", "A.test"),
        *("a b.test", "bücher.test", "a.test\n", "[192.0.2.1]", "a\0.test", "a/b.test", "::1"),
    ):
        assert not is_host_name(name), name


@pytest.mark.parametrize(
    ("domain", "address"),
    [
        ("[192.0.2.1]", "192.0.2.1"),
        ("[IPv6:2001:db8::1]", "2001:db8::1"),
        ("[ipv6:2001:DB8:0:0::1]", "2001:db8::1"),
        ("[2001:db8::1]", None),
        ("[IPv6:192.0.2.1]", None),
        ("[IPv6:fe80::1%eth0]", None),
        ("[192.0.2]", None),
        ("[]", None),
        ("[", None),
        ("", None),
        ("192.0.2.1", None),
        ("example.test", None),
    ],
)
def test_address_literals(domain: str, address: str | None) -> None:
    """RFC 5321 4.1.3: IPv4 bare, IPv6 behind its tag, nothing else."""
    assert literal_address(domain) == address


@pytest.mark.parametrize(
    "text", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:127.0.0.1", "", "example.test"]
)
def test_addresses_that_mean_no_host(text: str) -> None:
    """A connection to 0.0.0.0 or :: would reach this host, and the others nobody: none may come out of DNS."""
    assert not is_usable_address(text)


def test_addresses_that_mean_a_host() -> None:
    """Loopback and private addresses stay: relays inside a network route to them."""
    for text in ("127.0.0.2", "10.0.0.1", "2001:db8::1", "::1"):
        assert is_usable_address(text)


# The route table.


def test_most_specific_pattern_wins() -> None:
    """The domain itself before the longest suffix, before the smarthost, before the defaults."""
    exact, short, long, any_ = (destination(name) for name in ("exact", "short", "long", "any"))
    table = RouteTable.build(
        DEFAULTS,
        [
            (["*"], any_),
            (["*.example.org"], short),
            (["*.a.example.org", "x.test"], long),
            (["b.a.example.org"], exact),
        ],
    )
    assert table.lookup("b.a.example.org") is exact
    assert table.lookup("c.a.example.org") is long
    assert table.lookup("d.c.a.example.org") is long
    assert table.lookup("a.example.org") is short
    assert table.lookup("example.org") is any_
    assert table.lookup("notexample.org") is any_
    assert table.lookup("x.test") is long
    assert table.lookup("org") is any_
    assert table.lookup("") is any_


def test_without_a_match_the_defaults_hold_and_each_domain_is_its_own_limit() -> None:
    """The limit key of a destination is its name; of the defaults the domain."""
    table = RouteTable.build(DEFAULTS, [(["example.test"], destination("named"))])
    assert table.lookup("other.test") is DEFAULTS
    assert table.lookup("other.test").limit_key("other.test") == "other.test"
    assert table.lookup("example.test").limit_key("example.test") == "named"


def test_patterns_are_read_as_people_write_them() -> None:
    """Case and a final dot do not matter; an address literal can have a route."""
    named = destination("named")
    table = RouteTable.build(DEFAULTS, [(["Example.TEST.", "*.Example.TEST", "[192.0.2.1]", "example.test"], named)])
    for domain in ("example.test", "a.example.test", "[192.0.2.1]"):
        assert table.lookup(domain) is named


@pytest.mark.parametrize(
    "pattern", ["", "*.", "*.*", "ex*.test", "**", "a..b", "bücher.test", "*.[192.0.2.1]", "@x.test"]
)
def test_a_pattern_that_can_match_nothing_is_an_error(pattern: str) -> None:
    """It is named, so that the operator finds it."""
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        RouteTable.build(DEFAULTS, [([pattern], destination("named"))])


@pytest.mark.parametrize("pattern", ["example.test", "*.example.test", "*"])
def test_two_destinations_cannot_claim_one_pattern(pattern: str) -> None:
    """Which of the two held would depend on their order in the file."""
    with pytest.raises(ValueError, match="two destinations"):
        RouteTable.build(DEFAULTS, [([pattern], destination("one")), ([pattern], destination("two"))])


@given(
    st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), max_size=8),
    st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join), max_size=8),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(".".join),
)
def test_lookup_agrees_with_trying_every_pattern(exact: set[str], suffixes: set[str], domain: str) -> None:
    """The table gives what a walk over all patterns by falling length gives."""
    entries = [([name], destination(name)) for name in exact] + [([f"*.{s}"], destination(f"*.{s}")) for s in suffixes]
    matching = [s for s in sorted(suffixes, key=len, reverse=True) if domain.endswith(f".{s}")]
    expected = domain if domain in exact else f"*.{matching[0]}" if matching else ""
    assert RouteTable.build(DEFAULTS, entries).lookup(domain).name == expected


def test_lookup_does_not_grow_with_destinations() -> None:
    """A lookup touches as many entries among 10,000 destinations as among 10: counted, not timed."""

    class Counting(dict[str, DestinationSettings]):
        touched = 0

        def get(self, key: str, default: object = None) -> DestinationSettings | None:  # type: ignore[override]
            Counting.touched += 1
            return super().get(key)

    touched = []
    for number in (10, 10_000):
        Counting.touched = 0
        exact = Counting({f"d{i}.test": destination(str(i)) for i in range(number)})
        suffixes = Counting({f"s{i}.test": destination(str(i)) for i in range(number)})
        table = RouteTable(default=DEFAULTS, exact=exact, suffixes=suffixes)
        assert table.lookup("x.y.s7.test").name == "7"
        touched.append(Counting.touched)
    assert touched[0] == touched[1] <= 4


# The order of hosts.


def test_hosts_by_preference_shuffled_within() -> None:
    """RFC 5321 5.1: the preference orders, and only within equal preference the shuffle does."""
    records = [MX(20, "c.test"), MX(10, "a.test"), MX(10, "b.test"), MX(30, "d.test")]
    assert order_hosts(records, lambda group: group.reverse()) == (
        *(MX(10, "b.test"), MX(10, "a.test")),
        *(MX(20, "c.test"), MX(30, "d.test")),
    )


def test_every_host_of_equal_preference_comes_first_sometimes() -> None:
    """The load spreads over all hosts of a group, those beyond the limit included."""
    records = [MX(5, f"mx{i}.test") for i in range(15)]
    shuffle = random.Random(1).shuffle
    firsts = {order_hosts(records, shuffle)[0] for _ in range(500)}
    assert firsts == set(records)


def test_a_host_is_tried_once_at_its_best_preference() -> None:
    """A host that two records name is one host."""
    assert order_hosts([MX(20, "a.test"), MX(10, "a.test"), MX(15, "b.test")], unmoved) == (
        MX(10, "a.test"),
        MX(15, "b.test"),
    )


def test_the_number_of_hosts_of_an_attempt_is_bounded() -> None:
    """A domain cannot make one attempt last for its hundred hosts."""
    records = [MX(i, f"mx{i}.test") for i in range(100)]
    assert order_hosts(records, unmoved) == tuple(records[: routing.MOST_HOSTS])


def test_ourselves_and_all_behind_us_are_dropped() -> None:
    """RFC 5321 5.1: hosts of our own and of higher preference number would send the mail back to us."""
    records = [MX(10, "first.test"), MX(20, "beside.test"), MX(20, "us.test"), MX(30, "behind.test")]
    assert order_hosts(records, unmoved, {"us.test"}) == (MX(10, "first.test"),)


def test_when_we_are_the_best_exchanger_nothing_is_left() -> None:
    """An empty order is the sign of a loop, with one record and with several."""
    assert order_hosts([MX(10, "us.test")], unmoved, {"us.test"}) == ()
    assert order_hosts([MX(10, "us.test"), MX(10, "b.test"), MX(20, "c.test")], unmoved, {"us.test"}) == ()


@given(
    st.lists(st.builds(MX, st.integers(0, 5), st.sampled_from([f"h{i}" for i in range(8)])), min_size=1), st.randoms()
)
def test_order_is_a_selection_sorted_by_preference(records: list[MX], source: random.Random) -> None:
    """Whatever the records: only they come out, each host once, never a worse preference before a better one."""
    ordered = order_hosts(records, source.shuffle)
    assert set(ordered) <= set(records)
    assert (
        len({record.host for record in ordered})
        == len(ordered)
        == min(routing.MOST_HOSTS, len({r.host for r in records}))
    )
    assert [record.preference for record in ordered] == sorted(record.preference for record in ordered)


# The order of addresses.


def test_families_alternate() -> None:
    """A family that does not work costs one connection before the other's turn; the longer one fills the end."""
    assert alternate(["6a", "6b", "6c"], ["4a"]) == ("6a", "4a", "6b", "6c")
    assert alternate([], ["4a", "4b"]) == ("4a", "4b")
    assert len(alternate(["6"] * 50, ["4"] * 50)) == routing.MOST_ADDRESSES


def test_addresses_are_shuffled_within_their_family() -> None:
    """The family that DNS put first leads, and the turns stay."""
    shuffled = order_addresses(("::1", "10.0.0.1", "::2", "10.0.0.2"), lambda group: group.reverse())
    assert shuffled == ("::2", "10.0.0.2", "::1", "10.0.0.1")
    assert order_addresses(("10.0.0.1",), lambda group: pytest.fail("nothing to shuffle")) == ("10.0.0.1",)


class ProviderTest(SynchronousTestCase):
    """Whose limits hold when MX hosts decide."""

    def setUp(self) -> None:
        self.microsoft = DestinationSettings(name="microsoft", mx_suffix=("protection.outlook.com",))
        self.special = DestinationSettings(name="special", mx_suffix=("gov.protection.outlook.com",))
        self.named = DestinationSettings(name="named.example")
        self.rest = DestinationSettings(connections=3)
        self.table = RouteTable.build(
            DestinationSettings(),
            [
                ((), self.microsoft),
                ((), self.special),
                (("named.example", "*.named.example"), self.named),
                (("*",), self.rest),
            ],
        )

    def by(self, *hosts: str, domain: str = "example.com") -> DestinationSettings:
        return self.table.by_exchangers(domain, [MX(10 * n // 10, host) for n, host in enumerate(hosts)])

    def test_the_best_hosts_decide(self) -> None:
        """All domains whose most preferred host is a provider's, at the boundary of a label."""
        self.assertIs(self.by("example-com.mail.protection.outlook.com"), self.microsoft)
        self.assertIs(self.by("protection.outlook.com"), self.microsoft)
        self.assertIs(self.by("notprotection.outlook.com"), self.rest)
        self.assertIs(self.by("mx.example.com", "x.protection.outlook.com"), self.rest)
        self.assertIs(self.by("a.gov.protection.outlook.com"), self.special)
        self.assertIs(self.by(), self.rest)

    def test_among_equals_the_longest(self) -> None:
        """Two hosts of equal preference at two providers: the more special one's limits hold, whatever the order."""
        records = [MX(5, "x.protection.outlook.com"), MX(5, "y.gov.protection.outlook.com")]
        for each in (records, records[::-1]):
            self.assertIs(self.table.by_exchangers("example.com", each), self.special)

    def test_a_name_comes_first(self) -> None:
        """A domain that is named itself, or by a suffix, is not asked for in DNS."""
        for domain in ("named.example", "sub.named.example"):
            self.assertTrue(self.table.is_placed(domain))
            self.assertIs(self.by("x.protection.outlook.com", domain=domain), self.named)
        self.assertTrue(self.table.is_placed("[192.0.2.1]"))
        self.assertFalse(self.table.is_placed("example.com"))
        self.assertTrue(RouteTable.build(self.rest).is_placed("example.com"))

    def test_of_limit(self) -> None:
        """A limit's name finds its settings, a domain's the domain's."""
        self.assertIs(self.table.of_limit("microsoft"), self.microsoft)
        self.assertIs(self.table.of_limit("named.example"), self.named)
        self.assertIs(self.table.of_limit("example.com"), self.rest)

    def test_two_for_one(self) -> None:
        """No suffix belongs to two destinations, and no name."""
        other = DestinationSettings(name="other", mx_suffix=("protection.outlook.com",))
        same = DestinationSettings(name="microsoft")
        for each in (other, same):
            self.assertRaises(ValueError, RouteTable.build, self.rest, [((), self.microsoft), ((), each)])
        bad = DestinationSettings(name="bad", mx_suffix=("not a host",))
        self.assertRaises(ValueError, RouteTable.build, self.rest, [((), bad)])
