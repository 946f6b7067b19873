"""Addresses that stand for others: read from the operator's file, and put in place of recipients before a message is queued.

The file is what people know as `/etc/aliases`:

    # a comment
    postmaster:          admin@example.com
    root:                postmaster
    sales@example.com:   alice@example.com, bob@example.net,
                         "carol c"@example.org
    @old.example.com:    @example.com
    @lists.example.com:  lists@example.org

Left stands a mailbox, a whole domain (`@domain`), or a name: that is a mailbox at our own host name, at `localhost`, and for `postmaster`
also without any domain (RFC 5321 4.5.1). Right stand mailboxes, and names that stand on the left of another line; `@domain` for a whole
domain keeps the local-part. A line that begins with white space goes on with the one before. Left sides are compared without regard
to case; a mailbox goes before its whole domain. There are no commands, files or includes: this relay delivers to nobody's disk.

Expansion goes on until nothing is found. An address that stands for itself, directly or in a circle, is final: so it always ends,
and nobody is lost in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import Factory, define, evolve, frozen

from relaycluster.interfaces import FileTrouble
from relaycluster.mail.address import Address
from relaycluster.mail.envelope import NO_REQUESTS, Envelope, Notify, NotifyRequest
from relaycluster.mail.reply import Reply
from relaycluster.mail.xtext import orcpt_of
from relaycluster.smtp.grammar import GrammarError, parse_mailbox

FAN_OUT: Final = 1000
"""For so many recipients one alias may stand, through so many others."""
DEEPEST: Final = 50
"""So many aliases may lead from one to the next."""
MOST_STEPS: Final = 10 * FAN_OUT
"""So many targets may be looked at on the way from one alias to its end, however few recipients stand there."""
MOST_RECIPIENTS: Final = 10_000
"""So many recipients a message may have when all its aliases are expanded, each list counted whole."""

LOCALHOST: Final = "localhost"

_STEPS_A_RECIPIENT: Final = 4  # so many steps of an expansion weigh as much as one recipient
_MOST_REMEMBERED: Final = 1_000_000  # recipients and names, in all expansions that are kept

TOO_MANY = Reply.of(452, "4.5.3", "These aliases stand for too many recipients, send to fewer at once")
_VANISHED = Reply.of(451, "4.3.0", "The aliases have just changed, and a recipient is gone; try again")

_entry = re.compile(r"""((?:"(?:[^"\\]|\\.)*+"|[^\s":])++)\s*+:\s*+(.*)""", re.DOTALL).fullmatch
_targets = re.compile(r"""(?:"(?:[^"\\]|\\.)*+"|[^",])++""").findall
_is_name = re.compile(r"[A-Za-z0-9!#$%&'*+=?^_`{}~.-]{1,64}").fullmatch

_USUAL: Final = frozenset({Notify.FAILURE, Notify.DELAY})  # what no NOTIFY means (RFC 3461 4.1)


@define
class Crowd:
    """What the aliases among a message's recipients stand for so far: `size` counts each of `names` once. One that is `full` takes no
    alias any more."""

    size: int = 0
    names: set[str] = Factory(set)
    full: bool = False


@frozen
class _Expansion:
    """All that is behind an alias. Two recipients with the same `name` stand for the same `targets` (None: too many); `cost` is in
    recipients; `met` are the keys that lie on the way."""

    name: str
    targets: tuple[Address, ...] | None
    cost: int
    met: frozenset[str] = frozenset()


class Aliases:
    """The aliases that hold now. `hostname` is ours. There are none until a file is loaded."""

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname.lower()
        self._own = frozenset({self._hostname, LOCALHOST, ""})
        # `local@domain`, `local` at one of our own names, `@domain`; lower case. A target's text may begin with `@`: it keeps the
        # local-part that was asked for. One without a domain is a name.
        self.entries: Mapping[str, tuple[Address, ...]] = {}
        self._keeping: frozenset[str] = frozenset()  # keys of whole domains with a target that keeps the local-part
        self._known: dict[str, _Expansion] = {}
        self._remembered = 0

    def load(self, path: str) -> None:
        """Read the file; no aliases when `path` is empty. Raises `FileTrouble`, and then what held before still holds."""
        fresh = Aliases(self._hostname)
        if path:
            fresh.entries = fresh._read(path)
        self.entries = fresh.entries
        self._keeping = frozenset(
            key for key, targets in fresh.entries.items() if any(target.text[0] == "@" for target in targets)
        )
        self._forget()

    def knows(self, recipient: Address) -> bool:
        """Whether this recipient stands for others."""
        return self._targets(recipient) is not None

    def joins(self, recipient: Address, crowd: Crowd) -> bool:
        """One more recipient of a message. False when all that it would stand for then is too much: the client may send to this one in
        another transaction (RFC 5321 4.5.3.1.10)."""
        if crowd.full:
            return not self.knows(recipient)
        expansion = self._expansion(recipient)
        if expansion is None or expansion.name in crowd.names:
            return True
        if expansion.targets is None or crowd.size + expansion.cost > MOST_RECIPIENTS:
            crowd.full = True
            return False
        crowd.size += expansion.cost
        crowd.names.add(expansion.name)
        return True

    def expand(self, envelope: Envelope, trusted: bool) -> Envelope | Reply:
        """The envelope with the recipients that are behind its own, each once, in order; or the reply that refuses it.

        What RCPT asked about a recipient goes with all that it stands for (RFC 3461 5.2.7); but of several, only a `trusted` client
        hears of success: the notices would tell a stranger who is behind an alias. What stands for nobody, but is also behind
        an alias, gets what either asked. The alias becomes the ORCPT of those behind it when there was none (5.2.1): a notice then
        names an address that the sender knows.
        """
        if not self.entries or not any(self._targets(recipient) is not None for recipient in envelope.recipients):
            for recipient in envelope.recipients:
                if not recipient.domain:
                    return _VANISHED
            return envelope
        lists: dict[str, tuple[tuple[Address, ...], NotifyRequest | None]] = {}
        size = 0
        for recipient in envelope.recipients:
            request = envelope.requests.get(recipient.text)
            expansion = self._expansion(recipient)
            if expansion is None:
                if not recipient.domain:
                    return _VANISHED
                expansion = _Expansion(recipient.text, (recipient,), 1)
            elif expansion.targets is None:
                return TOO_MANY
            else:
                if not trusted and len(expansion.targets) > 1:
                    request = _without_success(request)
                request = _with_orcpt(request, recipient.text)
            assert expansion.targets is not None
            taken = lists.get(expansion.name)
            if taken is not None:
                lists[expansion.name] = (taken[0], _merged(taken[1], request))
                continue
            size += expansion.cost
            if size > MOST_RECIPIENTS:
                return TOO_MANY
            lists[expansion.name] = (expansion.targets, request)
        found: dict[str, Address] = {}
        requests: dict[str, NotifyRequest] = {}
        for targets, request in lists.values():
            for each in targets:
                wanted = _merged(requests.get(each.text), request) if each.text in found else request
                found.setdefault(each.text, each)
                if wanted is not None:
                    requests[each.text] = wanted
        return evolve(envelope, recipients=tuple(found.values()), requests=requests or NO_REQUESTS)

    # One recipient

    def _key(self, recipient: Address) -> str:
        text, domain = recipient.text, recipient.domain
        local_part = (text[: text.rfind("@")] if domain else text).lower()
        return local_part if domain in self._own else f"{local_part}@{domain}"

    def _targets(self, recipient: Address) -> tuple[Address, ...] | None:
        """What the recipient stands for, in one step; None when for nothing but itself."""
        return self.entries.get(self._key(recipient)) or self.entries.get(f"@{recipient.domain}")

    def _expansion(self, recipient: Address) -> _Expansion | None:
        """All that the recipient stands for in the end; None when for nothing but itself.

        Remembered where the recipient's spelling and, for a whole domain, the local-part make no difference: a message may name a
        thousand addresses of one alias. A local-part makes one where it is kept, and where the way leads past that very address.
        """
        if self._targets(recipient) is None:
            return None
        key, whole = self._key(recipient), f"@{recipient.domain}"
        by_domain = key not in self.entries
        if by_domain and whole in self._keeping:
            return self._walk(recipient.text, recipient)[0]
        known = self._known.get(key)
        if known is None and by_domain:
            known = self._known.get(whole)
            if known is not None and key in known.met:
                known = None
        if known is None:
            known, again = self._walk(key, recipient)
            if by_domain and not again and whole not in self._known:
                known = evolve(known, name=whole)
            weight = len(known.targets or ()) + len(known.met) + 1
            if self._remembered + weight > _MOST_REMEMBERED:
                self._forget()
            self._remembered += weight
            self._known[known.name] = known
        return known

    def _forget(self) -> None:
        self._known = {}
        self._remembered = 0

    def _walk(self, name: str, recipient: Address) -> tuple[_Expansion, bool]:
        """Follow the recipient to all its ends; also, whether the way led past the recipient itself again."""
        found: dict[str, Address] = {}
        start = self._key(recipient)
        open_keys: dict[str, bool] = {}  # True while its targets are being looked at
        steps, again = 0, False

        def look(address: Address, depth: int) -> bool:
            nonlocal steps, again
            key, targets = self._key(address), self._targets(address)
            again = again or (key == start and depth > 0)
            steps += 1
            if targets is None or open_keys.get(key):
                found.setdefault(address.text, address)
            elif key not in open_keys:
                open_keys[key] = True
                if depth == DEEPEST or not all(look(_kept(each, address), depth + 1) for each in targets):
                    return False
                open_keys[key] = False
            return len(found) <= FAN_OUT and len(open_keys) <= FAN_OUT and steps <= MOST_STEPS

        targets = tuple(found.values()) if look(recipient, 0) else None
        cost = max(len(found), steps // _STEPS_A_RECIPIENT)
        return _Expansion(name, targets, cost, frozenset(open_keys) - {start}), again

    # The file

    def _read(self, path: str) -> dict[str, tuple[Address, ...]]:
        entries: dict[str, tuple[Address, ...]] = {}
        lines: dict[str, int] = {}
        for number, text in _logical_lines(path):
            match = _entry(text)
            if match is None:
                raise FileTrouble(path, number, f"{text[:60]!r} is no alias; write it like `sales: alice@example.com`")
            key, whole_domain = self._left(path, number, match.group(1))
            if key in entries:
                raise FileTrouble(
                    path, number, f"{match.group(1)} stands in line {lines[key]} already; put all its targets there"
                )
            entries[key] = tuple(
                self._target(path, number, target.strip(), whole_domain)
                for target in _targets(match.group(2))
                if target.strip()
            )
            if not entries[key]:
                raise FileTrouble(path, number, f"{match.group(1)} stands for nobody; name a recipient, or take it out")
            lines[key] = number
        self.entries = entries
        for key, number in lines.items():
            self._check(path, number, key)
        return entries

    def _left(self, path: str, line: int, text: str) -> tuple[str, bool]:
        """The key, and whether it is a whole domain."""
        if text[0] == "@":
            return f"@{_mailbox(path, line, 'x' + text).domain}", True
        if "@" not in text and _is_name(text):
            return text.lower(), False
        return self._key(_mailbox(path, line, text)), False

    def _target(self, path: str, line: int, text: str, whole_domain: bool) -> Address:
        if text[0] in "|/:" or text[:2] in ('"|', '"/'):
            raise FileTrouble(
                path, line, f"{text[:60]!r}: a relay runs no commands and writes no files; name a mailbox elsewhere"
            )
        if text[0] == "@":
            if not whole_domain:
                raise FileTrouble(path, line, f"{text[:60]!r} keeps the local-part of a whole domain; name a mailbox")
            return Address(text, _mailbox(path, line, "x" + text).domain)
        if "@" not in text and _is_name(text):
            return Address(text, "")
        return _mailbox(path, line, text)

    def _check(self, path: str, line: int, key: str) -> None:
        """Follow an alias to its end, so that no recipient ever meets what is found here."""
        start = (
            Address("x" + key, key[1:]) if key[0] == "@" else Address(key, key.rpartition("@")[2] if "@" in key else "")
        )
        behind = self._walk(key, start)[0].targets
        if behind is None:
            raise FileTrouble(
                path,
                line,
                f"{key} stands for more than {FAN_OUT} others, or leads through more than {DEEPEST}; use a list",
            )
        for each in behind:
            if not each.domain:
                raise FileTrouble(
                    path, line, f"{each} has no domain and leads to nobody; there are no mailboxes here: add the domain"
                )


def _kept(target: Address, asked: Address) -> Address:
    """A target for a whole domain with the local-part that was asked for."""
    if target.text[0] != "@":
        return target
    local_part = asked.text[: asked.text.rfind("@")] if asked.domain else asked.text
    return Address(local_part + target.text, target.domain)


def _mailbox(path: str, line: int, text: str) -> Address:
    try:
        return parse_mailbox(text)
    except GrammarError as error:
        raise FileTrouble(path, line, f"{text[:60]!r} is no mailbox: {error}") from None


def _logical_lines(path: str) -> Iterator[tuple[int, str]]:
    """Each entry with the number of its first line; comments and empty lines left out, continuations joined."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileTrouble(path, 0, f"it can not be read: {error.strerror}") from None
    entry, begun = "", 0
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
        except UnicodeDecodeError:
            raise FileTrouble(path, number, "it is not UTF-8; save the file in that encoding") from None
        stripped = text.lstrip()
        if not stripped or stripped[0] == "#":
            continue
        if text[0] in " \t":
            if not entry:
                raise FileTrouble(path, number, "it goes on with a line that is not there; begin aliases at the margin")
            entry += " " + stripped
            continue
        if entry:
            yield begun, entry
        entry, begun = text, number
    if entry:
        yield begun, entry


def _with_orcpt(request: NotifyRequest | None, asked: str) -> NotifyRequest:
    if request is not None and request.original_recipient:
        return request
    return NotifyRequest(request.notify if request is not None else None, orcpt_of(asked))


def _without_success(request: NotifyRequest | None) -> NotifyRequest | None:
    if request is None or request.notify is None or Notify.SUCCESS not in request.notify:
        return request
    return evolve(request, notify=request.notify - {Notify.SUCCESS})


def _merged(first: NotifyRequest | None, second: NotifyRequest | None) -> NotifyRequest | None:
    """What one recipient gets that was reached in two ways: all that either asked to be told."""
    given = [request.notify if request is not None else None for request in (first, second)]
    notify = None if given == [None, None] else frozenset[Notify]().union(*(_USUAL if n is None else n for n in given))
    original = first.original_recipient if first is not None else ""
    return NotifyRequest(notify, original) if notify is not None or original else None
