"""Values that live in Redis: what is packed comes out again, and what a newer release wrote is refused."""

from __future__ import annotations

import msgpack
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.mail.address import NULL, Address
from relaycluster.mail.envelope import BodyType, Envelope, MessageClass, Notify, NotifyRequest, Ret
from relaycluster.mail.item import Item, Notice
from relaycluster.policy.cluster import Member
from relaycluster.store.redis import codec

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
REQUESTS = st.builds(
    NotifyRequest, st.none() | st.frozensets(st.sampled_from(Notify)), st.just("") | TEXT.map("rfc822;{}".format)
)
DOMAIN = st.from_regex(r"[a-z0-9.-]{1,60}", fullmatch=True)


@st.composite
def items(draw: st.DrawFn) -> Item:
    domain = draw(DOMAIN)
    recipients = draw(st.lists(TEXT, min_size=1, max_size=4))
    return Item(
        id=draw(st.from_regex(r"[0-9A-HJKMNP-TV-Z]{26}(-[1-9])?", fullmatch=True)),
        domain=domain,
        envelope=Envelope(
            draw(st.just(NULL) | st.builds(Address, TEXT, DOMAIN)),
            tuple(Address(text, domain) for text in recipients),
            draw(st.sampled_from(BodyType)),
            draw(st.booleans()),
            draw(st.none() | st.sampled_from(Ret)),
            draw(st.just("") | TEXT),
            draw(st.dictionaries(st.sampled_from(recipients), REQUESTS)),
        ),
        size=draw(st.integers(0, 2**32 - 1)),
        arrived_ms=draw(st.integers(0, 2**50)),
        message_class=draw(st.sampled_from(MessageClass)),
        attempts=draw(st.integers(0, 1000)),
        last_reply=draw(st.text(st.characters(codec="utf-8"), max_size=40)),
        chunks=draw(st.integers(0, 1000)),
        home=draw(st.integers(-1, 1023)),
        possible_duplicate=draw(st.booleans()),
        holder_deaths=draw(st.integers(0, 255)),
        delay_notified=draw(st.booleans()),
    )


class CodecTest(SynchronousTestCase):
    @given(items())
    def test_items(self, item: Item) -> None:
        """Field by field, also the flags, which share an octet."""
        self.assertEqual(codec.unpack_item(codec.pack_item(item)), item)

    @given(st.lists(items(), max_size=4), st.binary(max_size=50))
    def test_records_and_notices(self, several: list[Item], content: bytes) -> None:
        """Items inside of other values are the same items."""
        self.assertEqual(codec.unpack_items(codec.pack_items(several)), tuple(several))
        for item in several:
            notice = Notice(item, content)
            self.assertEqual(codec.unpack_notice(codec.pack_notice(notice)), notice)

    @given(items())
    def test_the_head_is_what_the_scripts_read(self, item: Item) -> None:
        """lua/lib/item.lua: version, flags, deaths, class, length of the domain, domain, size in four octets."""
        data, domain = codec.pack_item(item), item.domain.encode()
        self.assertEqual(
            (data[0], data[2], data[3], data[4]), (1, item.holder_deaths, item.message_class.value, len(domain))
        )
        self.assertEqual(data[5 : 9 + len(domain)], domain + item.size.to_bytes(4, "big"))
        self.assertEqual(bool(data[1] & 1), item.possible_duplicate)

    def test_a_value_without_wishes_is_what_it_always_was(self) -> None:
        """Octet by octet what the first release wrote, so that releases can be mixed; also when all wishes were another
        recipient's."""
        written = (
            b"\x01\x00\x00\x01\x0bexample.com\x00\x00\x14\x00\x9a\xba01JD0000000000000000000000\xb2sender@example.net"
            b"\xabexample.net\x91\xb0rcpt@example.com\x00\xcf\x00\x00\x01\x8b\xcf\xe5h\x00\x00\xa0\x00\xff"
        )
        envelope = Envelope(Address("sender@example.net", "example.net"), (Address("rcpt@example.com", "example.com"),))
        item = Item("01JD0000000000000000000000", "example.com", envelope, 5120, 1_700_000_000_000)
        self.assertEqual(codec.pack_item(item), written)
        self.assertEqual(codec.unpack_item(written), item)
        others = evolve(envelope, requests={"gone@example.com": NotifyRequest(frozenset())})
        self.assertEqual(codec.pack_item(evolve(item, envelope=others)), written)

    @given(items())
    def test_what_a_newer_release_adds_is_left_alone(self, item: Item) -> None:
        """As the first release reads ten values of eleven: without the rest, and without trouble."""
        data = codec.pack_item(item)
        at = 9 + data[4]
        rest = msgpack.unpackb(data[at:])
        rest = [*rest, *([["", "", [None] * len(item.envelope.recipients)]] if len(rest) == 10 else []), "new"]
        self.assertEqual(codec.unpack_item(data[:at] + msgpack.packb(rest)), item)

    @given(items(), st.integers(0, 255).filter(lambda version: version != codec.VERSION))
    def test_another_version_is_refused(self, item: Item, version: int) -> None:
        """A node that is too old does not guess, and says what to do."""
        data = bytes([version]) + codec.pack_item(item)[1:]
        with self.assertRaises(codec.UnknownVersion) as caught:
            codec.unpack_item(data)
        self.assertIn("upgrade", str(caught.exception))

    @given(st.binary(max_size=3000) | st.binary(min_size=1, max_size=9).map(lambda data: data * 700), st.booleans())
    def test_contents(self, content: bytes, compress: bool) -> None:
        """Compressed or not, the octets come back; compressing never makes them more than the marker longer."""
        packed = codec.pack_content(content, compress)
        self.assertEqual(codec.unpack_content(packed), content)
        self.assertTrue(len(packed) <= len(content) + 1)

    def test_what_compresses_is_compressed(self) -> None:
        """…unless the caller says that it does not live long enough."""
        content = b"the same again " * 500
        self.assertTrue(len(codec.pack_content(content)) < len(content) / 10)
        self.assertEqual(codec.pack_content(content, least=len(content) + 1)[1:], content)

    @given(st.text("abc-.", min_size=1), st.text("0123abc", min_size=1), st.floats(0, 100), st.booleans())
    def test_members(self, name: str, key: str, weight: float, draining: bool) -> None:
        """A member's roles, weight and state travel with it."""
        member = Member(7, name, key, ("edge", "delivery"), weight, "host.example", draining)
        self.assertEqual(codec.unpack_member(7, codec.pack_member(member)), member)
