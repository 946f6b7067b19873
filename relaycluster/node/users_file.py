"""The users file: one user a line, for people to read and for `relaycluster user` to write.

    NAME:HASH
    NAME:HASH:sender=@example.com sender=boss@example.org messages=100/h recipients=1000/h class=bulk

Empty lines and lines that begin with # are comments, and stay where they are. `!` before the hash shuts a user out without forgetting them. A wrong
line spoils the file as a whole: who reads half a file lets in or keeps out the wrong people.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache

from attrs import frozen

from relaycluster.config.values import parse_domain
from relaycluster.interfaces import FileTrouble
from relaycluster.mail.envelope import CLASSES, MessageClass
from relaycluster.node.passwords import PasswordHash
from relaycluster.policy.account import Account
from relaycluster.policy.rate import Rate

LONGEST_NAME_OCTETS = 254
_LARGEST_FILE_OCTETS = 64 << 20
_NEW_FILE_MODE = 0o600


@frozen
class User:
    """One line of the file. With `shut` nobody logs in under the name."""

    account: Account
    password: PasswordHash
    shut: bool = False


def key_of(name: str) -> str:
    """What a name is looked up by: case does not matter, and neither how an accented letter is composed."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).lower()


def read(path: str) -> Mapping[str, User]:
    """All users of a file, by `key_of` their names. Raises FileTrouble."""
    return _users(path, _lines(path))


def name_trouble(name: str) -> str:
    """Why this can be no user's name; empty when it can."""
    if not name:
        return "the name is empty"
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME_OCTETS:
        return f"the name is longer than {LONGEST_NAME_OCTETS} octets"
    if name.startswith("#") or ":" in name or not name.isprintable() or " " in name:
        return (
            f"{ascii(name)[:60]} is not a name; leave out colons, spaces and control characters, and # at the beginning"
        )
    return ""


def parse_sender(text: str) -> str:
    """What a user may send as: `name@example.com`, `@example.com`, or `@.example.com` for all domains below it; the domain in lower case
    with A-labels. Raises ValueError with what is wrong and the fix."""
    local, at, domain = text.rpartition("@")
    below = not local and domain.startswith(".")
    if not at or any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError(
            f'{text[:80]!r} is not a sender; write it like "alice@example.com", "@example.com" or "@.example.com"'
        )
    return f"{local.lower()}@{'.' if below else ''}{parse_domain(domain[1:] if below else domain)}"


def parse_line(line: str) -> User:
    """One user's line. Raises ValueError with what is wrong and the fix; a hash is never repeated in it."""
    name, colon, rest = line.partition(":")
    if not colon:
        raise ValueError('there is no colon; write "NAME:HASH", or let "relaycluster user add" write the line')
    if reason := name_trouble(name):
        raise ValueError(reason)
    written, _, words = rest.partition(":")
    shut = written.startswith("!")
    password = PasswordHash.read(written[shut:])
    senders, messages, recipients, message_class = _allowed(words)
    return User(Account(name, senders, messages, recipients, message_class), password, shut)


@lru_cache(maxsize=1024)
def _allowed(words: str) -> tuple[tuple[str, ...], Rate | None, Rate | None, MessageClass | None]:
    """What the third field allows; in a long file the same words stand in many lines."""
    senders: list[str] = []
    single: dict[str, str] = {}
    for word in words.split():
        option, _, value = word.partition("=")
        if option == "sender":
            senders.append(parse_sender(value))
        elif option in ("messages", "recipients", "class"):
            if option in single:
                raise ValueError(f"{option} stands there twice; leave one")
            single[option] = value
        else:
            raise ValueError(
                f"{word[:60]!r} is no option; there are sender=, messages=, recipients= and class="
                " (of a passwd file of another program, only the first two fields may stay)"
            )
    return (
        tuple(dict.fromkeys(senders)),
        Rate.parse_allowance(single["messages"]) if "messages" in single else None,
        Rate.parse_allowance(single["recipients"]) if "recipients" in single else None,
        parse_class(single["class"]) if "class" in single else None,
    )


def parse_class(text: str) -> MessageClass:
    """`urgent`, `normal` or `bulk`; raises ValueError."""
    if text not in CLASSES:
        raise ValueError(f"{text[:60]!r} is not a class; write urgent, normal or bulk")
    return CLASSES[text]


def render_rate(rate: Rate) -> str:
    """The shortest text that is read back as this allowance."""
    return str(Rate(rate.count, rate.period_seconds)) if rate.burst == rate.count else _with_burst(rate)


def _with_burst(rate: Rate) -> str:
    text = str(rate)
    return text if "," in text else f"{text},burst={rate.burst}"


def render(user: User) -> str:
    """The user's line, without its end."""
    account = user.account
    words = [f"sender={sender}" for sender in account.senders]
    if account.messages is not None:
        words.append(f"messages={render_rate(account.messages)}")
    if account.recipients is not None:
        words.append(f"recipients={render_rate(account.recipients)}")
    if account.message_class is not None:
        words.append(f"class={account.message_class.label}")
    line = f"{account.name}:{'!' if user.shut else ''}{user.password.text}"
    return f"{line}:{' '.join(words)}" if words else line


Change = Callable[[Mapping[str, User]], Mapping[str, User | None]]
"""From the users that there are to those that change, by key: a new value, or None for who goes."""


def edit(path: str, change: Change) -> None:
    """Change a file, or make it: the lines of others and the comments stay; readers see the old file or the new one; two who edit at once come
    one after the other. A new file is the owner's alone (0600), an old one keeps its mode and its owner. Raises FileTrouble."""
    path = os.path.realpath(path)
    with _locked(path):
        lines = _lines(path, may_be_missing=True)
        users = _users(path, lines)
        changed = dict(change(users))
        kept: list[str] = []
        for line in lines:
            key = "" if _is_comment(line) else key_of(line.partition(":")[0].strip())
            if key not in changed:
                kept.append(line)
            elif (user := changed.pop(key)) is not None:
                kept.append(render(user))
        kept += [render(user) for user in changed.values() if user is not None]
        _replace(path, "".join(f"{line}\n" for line in kept).encode("utf-8"))


def _lines(path: str, may_be_missing: bool = False) -> Sequence[str]:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE_OCTETS + 1)
    except FileNotFoundError as error:
        if may_be_missing:
            return []
        fix = f'create it with "relaycluster user add --users-file {path} NAME"'
        raise FileTrouble(path, 0, f"cannot be read ({error.strerror}); {fix}") from None
    except OSError as error:
        raise FileTrouble(path, 0, f"cannot be read ({error.strerror}); let the node's user read it") from None
    if len(data) > _LARGEST_FILE_OCTETS:
        raise FileTrouble(path, 0, f"is larger than {_LARGEST_FILE_OCTETS >> 20} MiB; is this the right file?")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileTrouble(path, line, "is not UTF-8; save it as UTF-8") from None
    return (
        [line.removesuffix("\r") for line in text.removeprefix("\ufeff").removesuffix("\n").split("\n")] if text else []
    )


def _users(path: str, lines: Sequence[str]) -> Mapping[str, User]:
    users: dict[str, User] = {}
    places: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if _is_comment(line):
            continue
        try:
            user = parse_line(line.strip())
        except ValueError as error:
            raise FileTrouble(path, number, str(error)) from None
        key = key_of(user.account.name)
        if key in users:
            raise FileTrouble(path, number, f"{user.account.name} is in line {places[key]} already; leave one of them")
        users[key], places[key] = user, number
    return users


def _is_comment(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """The lock is on the directory: the file itself is another one after each edit."""
    directory = os.path.dirname(path)
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FileTrouble(path, 0, f"its directory cannot be used ({error.strerror}); create it first") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: str, data: bytes) -> None:
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".users-", dir=os.path.dirname(path))
        with os.fdopen(descriptor, "wb") as file:
            try:
                old = os.stat(path)
            except FileNotFoundError:
                os.fchmod(descriptor, _NEW_FILE_MODE)
            else:
                made = os.fstat(descriptor)
                if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, old.st_mode & 0o7777)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
        temporary = ""
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise FileTrouble(path, 0, f"cannot be written ({error.strerror}); run this as the file's owner") from None
    finally:
        if temporary:
            os.unlink(temporary)
