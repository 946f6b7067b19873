"""The operator's verbs: what they say of a queue, what they change, how they exit; over the memory store, and once for all as real commands
against a real Redis."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable
from typing import Any, cast

import click
import pytest
from attrs import evolve
from rich.console import Console
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from relaycluster.cli import cluster_status, queue_acts, queue_explain, queue_looking
from relaycluster.cli.cluster import DONE, NO_QUEUE, NOT_DONE, WRONG_USE, Answer, Cluster, QueueVerb
from relaycluster.cli.main import VERBS
from relaycluster.cli.words import said, span
from relaycluster.config import load
from relaycluster.interfaces import ItemState, QueueUnavailable, Wanted
from relaycluster.mail import history
from relaycluster.mail.address import NULL
from relaycluster.mail.envelope import Envelope
from relaycluster.mail.history import Attempt, Via
from relaycluster.policy.cluster import Member, Snapshot
from relaycluster.policy.pause import Why
from relaycluster.policy.ring import partition_of
from relaycluster.policy.routing import MX, Exchangers
from tests.contract.backends import PARTITIONS, ContractTestCase, MemoryBackend
from tests.contract.test_queue import an_item

HOSTILE = "451 4.7.1 \x1b[2Jlater\r\nforged\u202e line"
CHOICE: dict[str, Any] = {
    "domain": None,
    "states": (),
    "sender": None,
    "recipient": None,
    "message_class": None,
    "older_than": None,
}


def done(what: Awaitable[Any]) -> Any:
    """The result of what the memory store answers at once."""

    async def run() -> Any:
        return await what

    found: list[Any] = []
    Deferred.fromCoroutine(run()).addBoth(found.append)
    (result,) = found
    if hasattr(result, "raiseException"):
        result.raiseException()
    return result


def shown(answer: Answer, width: int = 100, terminal: bool = True) -> str:
    """What a person reads; each line must fit."""
    file = io.StringIO()
    answer.show(
        Console(
            file=file, width=width, force_terminal=terminal, no_color=True, highlight=False, markup=False, emoji=False
        )
    )
    return file.getvalue()


class Resolver:
    """Knows one answer."""

    def mx(self, domain: str) -> Deferred[Any]:
        return succeed(Exchangers((MX(10, f"mx.{domain}"),)))


class World:
    """One node that lives, owns all, and a queue with something in each state."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.queue = self.backend.queue
        member = done(
            self.backend.membership.join(Member(0, "node-1", "key-1", ("edge", "delivery"), 1.0, "relay.example"))
        )
        self.view: Snapshot = done(self.backend.membership.beat(member))
        for partition in range(PARTITIONS):
            done(self.queue.acquire(partition, member.incarnation, self.view))
        config = load(
            None,
            {"RELAYCLUSTER_NODE__HOSTNAME": "relay.example.net"},
            {
                "delivery.rate_per_domain": "10/s",
                "destination": [{"match": ["gmail.com", "googlemail.com"]}, {"name": "inside", "match": ["*.lan"]}],
            },
        )
        self.cluster = Cluster(
            self.backend.operator,
            self.backend.suspensions,
            self.queue,
            config,
            "alice@console",
            Clock(),
            Resolver(),  # type: ignore[arg-type]
        )
        self.items = [an_item(number) for number in range(4)]
        for item in self.items:
            done(self.queue.enqueue(item, b"x", None))
        owner = done(self.queue.acquire(partition_of("example.com", PARTITIONS), member.incarnation, self.view))
        deferred, self.leased = done(self.queue.claim(owner, "example.com", 2, 1))
        later = evolve(deferred.item, attempts=1, last_reply=HOSTILE)
        attempt = Attempt(self.queue.now_ms(), Via("mx.example.com", "192.0.2.1:25"), "rcpt", "deferred", HOSTILE, 0.2)
        packed = history.pack_attempt(later.id, attempt)
        done(self.queue.defer(deferred, later, 600_000, None, packed))
        done(self.backend.operator.hold(self.items[3].id, "bob", "look at it"))

    def run(self, verb: QueueVerb, *arguments: Any, **options: Any) -> Answer:
        answer: Answer = done(verb.body(self.cluster, *arguments, **options))
        json.dumps(answer.json)
        for width in (60, 100, 200):
            text = shown(answer, width)
            assert "\x1b[2J" not in text
            assert "\u202e" not in text
        return answer


@pytest.fixture
def world() -> World:
    return World()


def act(world: World, verb: QueueVerb, *identifiers: str, **options: Any) -> Answer:
    return world.run(verb, identifiers=identifiers, reason="why", **{**CHOICE, **options})


def test_queue(world: World) -> None:
    """The totals, and a line for each domain that tells what waits, until when, whose it is, and the last reply, harmless."""
    answer = world.run(queue_looking.queue, top=50)
    assert (answer.json["waiting"], answer.json["leased"], answer.json["held"]) == (2, 1, 1)
    (domain,) = answer.json["domains"]
    assert (domain["domain"], domain["waiting"], domain["ready"], domain["owner"]) == ("example.com", 2, 1, "node-1")
    assert domain["last_reply"] == HOSTILE
    text = shown(answer, 200)
    assert "example.com" in text
    assert r"\x1b[2Jlater\r\nforged\u202e line" in text
    plain = re.sub(r"\x1b\[\d*m", "", shown(answer, 60))
    assert all(len(line) <= 60 for line in plain.splitlines())
    # Nothing is cut where a program reads it.
    assert r"forged\u202e line" in shown(answer, 60, terminal=False)


def test_list_and_show(world: World) -> None:
    """Chosen by state; an item's own page says where it is; what is not there is said so, with status 1."""
    held = world.run(queue_looking.list_items, limit=10, **{**CHOICE, "states": ("held",)})
    assert [each["id"] for each in held.json["items"]] == [world.items[3].id]
    assert len(world.run(queue_looking.list_items, limit=10, **CHOICE).json["items"]) == 4
    assert "perhaps more" in shown(world.run(queue_looking.list_items, limit=2, **CHOICE))
    page = world.run(queue_looking.show_item, identifier=world.leased.item.id)
    assert "in the hands of node-1" in shown(page)
    assert page.json["items"][0]["holder"] == "node-1"
    for identifier in ("rubbish\x1b", an_item(99).id):
        missing = world.run(queue_looking.show_item, identifier=identifier)
        assert missing.status == NOT_DONE
        assert "not" in shown(missing)


def test_trace(world: World) -> None:
    """Each attempt with host, address, stage and reply; each act with who and why."""
    answer = world.run(queue_looking.trace, identifier=world.items[0].id)
    text = shown(answer, 200)
    assert "deferred at rcpt: mx.example.com [192.0.2.1:25] (0.2 s): 451 4.7.1 " in text
    assert "is scheduled" in text
    acts = world.run(queue_looking.trace, identifier=world.items[3].id)
    assert "hold by bob: look at it" in shown(acts)
    assert world.run(queue_looking.trace, identifier=an_item(99).id).status == NOT_DONE


def test_explain(world: World) -> None:
    """Why it waits, in words: its schedule, a suspension, a hold, the holder."""

    def why(subject: str) -> str:
        return " ".join(shown(world.run(queue_explain.explain, subject=subject, no_dns=False), 1000).split())

    assert "mx.example.com (10)" in why("example.com")
    assert "1 of 2 items is due, and node-1 sends" in why("example.com")
    assert "1 item is in a node's hands" in why("example.com")
    assert "1 item is held" in why("example.com")
    assert "attempt 2 is due in 10min" in why(world.items[0].id)
    assert "in the hands of node-1" in why(world.leased.item.id)
    assert "hold by bob: look at it" in why(world.items[3].id)
    world.run(queue_acts.suspend, subject="*.com", is_limit=False, seconds=60.0, reason="ip listed")
    assert "*.com is suspended until" in why("example.com")
    assert "by alice@console: ip listed" in why(world.items[0].id)
    assert "nothing waits" in why("example.org")


def test_explain_tells_an_item_from_its_domain(world: World) -> None:
    """All that `show` says of an item it says, too, with the same words, also after another item of the domain was deferred with others;
    what holds for the domain stands beside it, and only there where a domain is asked for."""
    fuller = evolve(world.leased.item, attempts=1, last_reply="452 4.2.2 mailbox full")
    done(world.queue.defer(world.leased, fuller, 900_000, None))
    identifier = world.items[0].id
    (shown_item,) = world.run(queue_looking.show_item, identifier=identifier).json["items"]
    answer = world.run(queue_explain.explain, subject=identifier, no_dns=True)
    (explained,) = answer.json["items"]
    assert shown_item["last_reply"] == HOSTILE
    assert {name: explained[name] for name in shown_item} == shown_item
    domain = world.run(queue_explain.explain, subject="example.com", no_dns=True).json
    assert (explained["domain_last_reply"], domain["last_reply"]) == (fuller.last_reply, fuller.last_reply)
    common = domain.keys() - {"reasons", "last_reply"}
    assert {name: explained[name] for name in common} == {name: domain[name] for name in common}
    assert "it was deferred last with: 451 4.7.1" in " ".join(shown(answer, 1000).split())


def test_explain_what_the_owner_knows(world: World) -> None:
    """Dead hosts, a rest, a used-up rate, a provider's suspension that the configuration alone does not tell: each in words that fit, and never
    another's; obstacles first, also where nothing waits but what is held or in hand."""

    def why(subject: str = "example.com") -> str:
        return " ".join(shown(world.run(queue_explain.explain, subject=subject, no_dns=True), 1000).split())

    owner = done(world.queue.acquire(partition_of("example.com", PARTITIONS), 1, world.view))
    words = {
        Why.PARKED: (
            "451 refused",
            "no host could be reached; the next try is in 2min (`flush` tries at once): 451 refused",
        ),
        Why.RESTING: ("", "a host asked for less: nothing is sent for 2min"),
        Why.RATE: ("", "the rate was used up: its owner looks again in 2min"),
        Why.SUSPENDED: ("provider", "it was suspended by provider: its owner looks again in 2min"),
        Why.SPREAD: ("", "it was resumed just now, and is sent to again in 2min"),
    }
    for reason, (detail, wanted) in words.items():
        done(world.queue.pause(owner, "example.com", 120_000, reason, detail))
        text = why()
        assert wanted in text
        assert not any(other in text for other_reason, (_, other) in words.items() if other_reason is not reason)
        assert "node-1 sends" not in text
        assert text.index(wanted) < text.index("is due")
        assert wanted in why(world.leased.item.id)
        (line,) = world.run(queue_looking.queue, top=5).json["domains"]
        assert line["kept_back"].startswith(reason.value)
    done(world.queue.pause(owner, "example.com", 120_000, Why.SUSPENDED, "provider"))
    assert world.run(queue_acts.flush, domains=("example.com",), reason="").json["suspended"] == ["example.com"]
    for item in world.items:
        done(world.backend.operator.hold(item.id, "bob", ""))
    world.run(queue_acts.suspend, subject="example.com", is_limit=False, seconds=60.0, reason="")
    text = why()
    assert "nothing waits" not in text
    assert text.index("example.com is suspended until") < text.index("4 items are held")


def test_acts(world: World) -> None:
    """Each does what it says to all that are named or chosen; what it cannot do it says, with status 1."""
    identifiers = [item.id for item in world.items]
    answer = act(world, queue_acts.hold, *identifiers[:1], identifiers[3])
    assert (answer.status, answer.json["done"]) == (DONE, 2)
    assert act(world, queue_acts.release, states=("held",)).json["done"] == 2
    refused = act(world, queue_acts.delete, world.leased.item.id, yes=True)
    assert (refused.status, refused.json["results"][0]["result"]) == (NOT_DONE, "leased")
    assert "hold it first" in shown(refused)
    assert act(world, queue_acts.requeue, identifiers[0], reset=True).json["done"] == 1
    (one,) = done(world.backend.operator.show(identifiers[0]))
    assert (one.item.attempts, one.state.value) == (0, "ready")
    assert act(world, queue_acts.bounce, identifiers[2], yes=True).json["done"] == 1
    assert act(world, queue_acts.delete, domain="example.com", states=("ready",), yes=True).json["done"] == 2
    assert act(world, queue_acts.hold, "rubbish").status == NOT_DONE
    partition = partition_of("example.com", PARTITIONS)
    told = [(each.verb, each.who) for each, _ in done(world.backend.operations.acts(partition))]
    assert told[0] == ("hold", "bob")
    assert {who for _, who in told[1:]} == {"alice@console"}
    assert [verb for verb, _ in told[1:]] == [
        "hold",
        "release",
        "release",
        "requeue --reset",
        "bounce",
        "delete",
        "delete",
    ]


def test_acts_name_what_they_act_on(world: World) -> None:
    """By ids or by options, one of both; nothing is never everything."""
    for identifiers, options in (((), {}), ((world.items[0].id,), {"domain": "example.com"})):
        with pytest.raises(click.UsageError):
            act(world, queue_acts.delete, *identifiers, yes=True, **options)


class Meanwhile:
    """An operator beside whom nodes and clients go on: `after_first` runs once, after the first act."""

    def __init__(self, operator: Any, after_first: Any) -> None:
        self._operator = operator
        self._after_first = after_first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)

    def delete(self, item_id: str, who: str, reason: str) -> Deferred[Any]:
        answer = self._operator.delete(item_id, who, reason)
        self._after_first, run = lambda: None, self._after_first
        run()
        return answer  # type: ignore[no-any-return]


def test_chosen_by_options_while_nodes_work(world: World) -> None:
    """What comes, or comes back, while the act goes through the queue is found too; what leaves it by itself is no failure."""
    leaving, coming = world.items[1], an_item(20)

    def meanwhile() -> None:
        done(world.queue.put_back(world.leased))
        done(world.queue.enqueue(coming, b"x", None))
        done(world.backend.operator.hold(leaving.id, "node", ""))
        done(world.backend.operator.delete(leaving.id, "node", ""))

    cluster = evolve(world.cluster, operator=cast(Any, Meanwhile(world.backend.operator, meanwhile)))
    choice = {**CHOICE, "sender": "sender@"}
    answer = done(queue_acts.delete.body(cluster, identifiers=(), reason="", yes=True, **choice))
    assert answer.status == DONE
    assert {each["result"] for each in answer.json["results"]} == {"done"}
    assert {each["id"] for each in answer.json["results"]} == {item.id for item in (*world.items, coming)} - {
        leaving.id
    }
    assert done(world.backend.operator.items(Wanted(), 10)) == []


def test_an_endless_stream_ends_the_act(world: World) -> None:
    """As fast as mail may come: the act ends."""
    numbers = iter(range(100, 1000))

    def more() -> None:
        done(world.queue.enqueue(an_item(next(numbers)), b"x", None))
        operator._after_first = more

    operator = Meanwhile(world.backend.operator, more)
    choice = {**CHOICE, "states": ("ready",)}
    cluster = evolve(world.cluster, operator=cast(Any, operator))
    answer = done(queue_acts.delete.body(cluster, identifiers=(), reason="", yes=True, **choice))
    assert answer.json["done"] == queue_acts.MOST_PASSES


def test_what_can_not_be_read(world: World) -> None:
    """Listed and shown with the reason, never as mail from the null sender."""
    (held,) = done(world.backend.operator.items(Wanted(states=frozenset({ItemState.HELD})), 10))
    odd = evolve(held, item=evolve(held.item, envelope=Envelope(NULL, ())), unreadable="format version 9")

    class Operator(Meanwhile):
        def show(self, identifier: str) -> Deferred[Any]:
            return succeed([odd])

        def items(self, wanted: Any, limit: int) -> Deferred[Any]:
            return succeed([odd])

    world.cluster = evolve(world.cluster, operator=cast(Any, Operator(world.backend.operator, lambda: None)))
    for answer in (
        world.run(queue_looking.list_items, limit=10, **CHOICE),
        world.run(queue_looking.show_item, identifier=odd.item.id),
    ):
        assert "can not be read" in shown(answer, 200)
        assert "format version 9" in shown(answer, 200)
        assert "<>" not in shown(answer, 200)
        assert answer.json["items"][0]["unreadable"] == "format version 9"


def test_the_queue_goes_in_the_middle_of_an_act(world: World) -> None:
    """The error of the first act that failed is the command's."""

    class Gone(Meanwhile):
        def delete(self, item_id: str, who: str, reason: str) -> Deferred[Any]:
            return fail(QueueUnavailable("the connection to Redis was lost"))

    cluster = evolve(world.cluster, operator=cast(Any, Gone(world.backend.operator, lambda: None)))
    with pytest.raises(QueueUnavailable):
        done(
            queue_acts.delete.body(cluster, identifiers=(), reason="", yes=True, **{**CHOICE, "domain": "example.com"})
        )


def test_flush_and_suspensions(world: World) -> None:
    """A flush of what is suspended says that it changes nothing yet."""
    answer = world.run(queue_acts.flush, domains=("Example.COM",), reason="")
    assert answer.json == {"flushed": {"example.com": 1}, "suspended": []}
    world.run(queue_acts.suspend, subject="example.com", is_limit=False, seconds=None, reason="")
    assert "is suspended" in shown(world.run(queue_acts.flush, domains=("example.com",), reason=""))
    listed = world.run(queue_acts.suspend, subject=None, is_limit=False, seconds=None, reason="")
    assert [each["subject"] for each in listed.json["suspensions"]] == ["example.com"]
    assert world.run(queue_acts.resume, subject="example.com", is_limit=False, reason="").status == DONE
    assert world.run(queue_acts.resume, subject="example.com", is_limit=False, reason="").status == NOT_DONE
    with pytest.raises(click.BadParameter):
        world.run(queue_acts.suspend, subject="no domain", is_limit=False, seconds=None, reason="")


def test_limits_are_suspended_by_their_names(world: World) -> None:
    """A limit and the domain that it may be named after are two things; one that no destination has is a typing error; what is listed can be
    given to `resume`."""

    def suspend(subject: str, is_limit: bool) -> str:
        return shown(
            world.run(queue_acts.suspend, subject=subject, is_limit=is_limit, seconds=None, reason=""), 1000, False
        )

    assert "limit:gmail.com is suspended" in suspend("gmail.com", True)
    assert "--limit gmail.com" in suspend("gmail.com", False)
    assert "--limit" not in suspend("example.com", False)
    done(world.cluster.suspensions.see(3))
    for domain, by in (("googlemail.com", "limit:gmail.com"), ("gmail.com", "gmail.com")):
        found = world.cluster.suspensions.suspended(domain, "gmail.com")
        assert found is not None
        assert found.subject == by
    for typo in ("insid", "*", "gmail.co"):
        with pytest.raises(click.BadParameter, match=r"there are: gmail\.com, inside"):
            suspend(typo, True)
    assert world.run(queue_acts.resume, subject="limit:gmail.com", is_limit=False, reason="").status == DONE
    # The destination is perhaps gone from the configuration since.
    gone = world.run(queue_acts.resume, subject="gone", is_limit=True, reason="")
    assert (gone.status, gone.json["suspended"]) == (NOT_DONE, ["gmail.com", "example.com"])


def parsed(verb: QueueVerb, *arguments: str) -> dict[str, Any]:
    """What the verb's own function would be given."""
    return verb.make_context("verb", [*arguments]).params


def test_an_empty_variable_is_not_everything() -> None:
    """`--sender "$NOTHING"` chooses no item: it is an error."""
    for option in ("--sender", "--recipient", "--domain"):
        for text in ("", "  "):
            with pytest.raises(click.BadParameter):
                parsed(queue_acts.delete, option, text, "--yes")
    assert parsed(queue_acts.delete, "--sender", "<>")["sender"] == "<>"


def test_a_suspension_lasts_some_time() -> None:
    """No time would be stored as for ever."""
    for text in ("0s", "0", "-1s"):
        with pytest.raises(click.BadParameter):
            parsed(queue_acts.suspend, "example.com", "--for", text)
    assert parsed(queue_acts.suspend, "example.com", "--for", "1min")["seconds"] == 60


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("Gr\udcfc\udcdfe", "Gr\ufffd\ufffde"),
        (" a\nb\x1b[2Jc\x00 ", "a b [2Jc"),
        ("é" * 1000, "é" * 300),
        ("", ""),
    ],
)
def test_reasons_are_text(given: str, wanted: str) -> None:
    """Whatever octets the shell passes on can be stored, as one line of bounded length."""
    found = parsed(queue_acts.hold, "--reason", given)["reason"]
    assert found == wanted
    found.encode()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:DB8::1]", "[ipv6:2001:db8::1]"),
        ("EXAMPLE.com", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("[192.0.2]", None),
        ("[]", None),
        ("192.0.2.1", None),
        ("no domain", None),
        ("[2001:db8::1]", None),
    ],
)
def test_recipient_domains(given: str, wanted: str | None) -> None:
    """Mail to `user@[192.0.2.1]` stands in the queue under the literal, and is chosen by it."""
    for verb, arguments in ((queue_looking.list_items, ("--domain", given)), (cluster_status.ring, (given,))):
        if wanted is None:
            with pytest.raises(click.BadParameter):
                parsed(verb, *arguments)
        else:
            assert parsed(verb, *arguments)["domain"] == wanted


def test_address_literals_are_operated(world: World) -> None:
    """By every verb that takes a domain."""
    literal = "[192.0.2.1]"
    done(world.queue.enqueue(an_item(8, literal), b"x", None))
    assert world.run(queue_acts.flush, domains=(literal,), reason="").json["flushed"] == {literal: 0}
    assert world.run(queue_explain.explain, subject=literal, no_dns=True).json["waiting"] == 1
    world.run(queue_acts.suspend, subject=literal, is_limit=False, seconds=None, reason="")
    done(world.cluster.suspensions.see(1))
    assert world.cluster.suspensions.suspended(literal, literal) is not None


def test_status_nodes_ring(world: World) -> None:
    """Who lives and owns, and what needs attention: held items; nodes that are gone."""
    answer = world.run(cluster_status.status)
    assert (answer.json["delivery_nodes"], answer.json["partitions_without_owner"]) == (["node-1"], 0)
    assert "1 items are held" in shown(answer)
    (node,) = world.run(cluster_status.nodes).json["nodes"]
    assert (node["id"], node["state"], node["partitions"]) == ("node-1", "alive", PARTITIONS)
    assert "100.0 %" in shown(world.run(cluster_status.ring, domain=None))
    assert "owned by node-1" in shown(world.run(cluster_status.ring, domain="example.com"))
    done(world.backend.advance(11_000))
    answer = world.run(cluster_status.status)
    assert any("no delivery node lives" in line for line in answer.json["attention"])
    assert answer.json["partitions_without_owner"] == PARTITIONS
    assert "nobody" in shown(world.run(cluster_status.ring, domain="example.com"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain é", "plain é"),
        ("\x1b]0;t\x07", r"\x1b]0;t\x07"),
        ("a\nb", r"a\nb"),
        ("\ud800", "\ufffd"),
        ("\u202e", r"\u202e"),
    ],
)
def test_strangers_words(text: str, wanted: str) -> None:
    """Nothing that a stranger said moves a cursor, or looks like another line."""
    assert said(text) == wanted


@pytest.mark.parametrize(
    ("milliseconds", "wanted"),
    [
        (0, "0s"),
        (-5, "0s"),
        (59_400, "59s"),
        (3_600_000, "1h"),
        (90_000, "1min 30s"),
        (273_600_000, "3d 4h"),
        (86_405_000, "1d"),
    ],
)
def test_spans(milliseconds: int, wanted: str) -> None:
    """Two units at most."""
    assert span(milliseconds) == wanted


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("RELAYCLUSTER_")}
    return subprocess.run(
        [sys.executable, "-m", "relaycluster.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**environ, "RELAYCLUSTER_NODE__HOSTNAME": "relay.example.net"},
    )


class CommandTest(ContractTestCase):
    """The real command, its options and exit statuses."""

    major = 6
    timeout = 120

    async def say(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await deferToThread(command, *arguments)

    async def test_a_day_of_an_operator(self) -> None:
        """Look, suspend, hold by domain, release, delete with and without --yes; each in a process of its own, on one Redis."""
        from tests.contract.servers import server_for

        where = ("--redis", f"unix://{server_for(6)}")
        for number in range(3):
            await self.queue.enqueue(an_item(number), b"x", None)
        queue = await self.say("queue", *where, "--json")
        self.assertEqual((queue.returncode, json.loads(queue.stdout)["waiting"]), (DONE, 3), queue.stderr)
        suspended = await self.say("suspend", "example.com", "--for", "15min", "--reason", "listed", *where)
        self.assertEqual(suspended.returncode, DONE, suspended.stderr)
        (found,) = await self.backend.suspensions.all()
        self.assertEqual(
            (found.subject, found.until_ms - found.since_ms, found.reason), ("example.com", 900_000, "listed")
        )
        held = await self.say("hold", "--domain", "example.com", *where)
        self.assertEqual((held.returncode, held.stdout), (DONE, "3 held\n"))
        self.assertEqual((await self.queue.tally(range(PARTITIONS))).held, 3)
        explained = await self.say("explain", an_item(0).id, "--no-dns", *where)
        self.assertIn("has been held for", explained.stdout)
        refused = await self.say("delete", "--domain", "example.com", *where)
        self.assertEqual(refused.returncode, 1)
        self.assertEqual((await self.backend.counts())["items"], 3)
        deleted = await self.say("delete", "--domain", "example.com", "--yes", *where, "--json")
        self.assertEqual(json.loads(deleted.stdout)["done"], 3)
        self.assertEqual((await self.backend.counts())["items"], 0)
        self.assertEqual(await self.backend.violations(), [])
        trace = await self.say("trace", an_item(0).id, *where)
        self.assertIn("delete by ", trace.stdout)

    async def test_exit_statuses(self) -> None:
        """1: not done; 2: used wrongly; 3: the queue can not be reached, or there is none."""
        from tests.contract.servers import server_for

        where = ("--redis", f"unix://{server_for(6)}")
        self.assertEqual((await self.say("show", an_item(1).id, *where)).returncode, NOT_DONE)
        for wrong in (
            ("hold", *where),
            ("delete", "--sender", "", "--yes", *where),
            ("suspend", "no domain", *where),
            ("queue", "--config", "/no/such/file"),
        ):
            found = await self.say(*wrong)
            self.assertEqual((found.returncode, found.stdout), (WRONG_USE, ""), wrong)
            self.assertNotIn("Traceback", found.stderr)
        nobody = await self.say("queue", "--redis", "unix:///no/such/socket")
        self.assertEqual((nobody.returncode, nobody.stdout), (NO_QUEUE, ""))
        self.assertIn("no Redis answers at /no/such/socket (No such file or directory)", nobody.stderr)
        await self.backend.redis.request("FLUSHALL")
        empty = await self.say("status", *where)
        self.assertEqual(empty.returncode, NO_QUEUE)
        self.assertIn("there is no cluster", empty.stderr)


def test_every_verb_has_its_module() -> None:
    """The table of verbs names commands that exist, and each has --json, --config and --redis where it needs a cluster."""
    from relaycluster.cli.main import main

    for name in VERBS:
        found = main.get_command(click.Context(main), name)
        assert found is not None
        if isinstance(found, QueueVerb):
            options = [option for parameter in found.params for option in parameter.opts]
            assert len(options) == len(set(options)), name
            assert {"--json", "--config", "--redis"} <= set(options)
            assert found.help
