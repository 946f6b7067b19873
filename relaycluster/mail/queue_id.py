"""The queue id: made by the edge, quoted in the 250, in `Received:`, in logs, notices and commands.

26 characters of Crockford's base32, all upper case: ten of time (milliseconds since the epoch, so that ids sort by
time), three that name the message's home partition (so that any node finds the message from its id alone), and
thirteen (65 bits) of randomness. An item of a message for several domains adds `-` and its number: `01JD…-3`.
"""

from __future__ import annotations

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
TIME_LENGTH = 10
PARTITION_LENGTH = 3
RANDOM_LENGTH = 13
LENGTH = TIME_LENGTH + PARTITION_LENGTH + RANDOM_LENGTH
RANDOM_BITS = 5 * RANDOM_LENGTH
MOST_PARTITIONS = 32**PARTITION_LENGTH

_VALUES = {character: value for value, character in enumerate(ALPHABET)}
_PAIRS = [a + b for a in ALPHABET for b in ALPHABET]


def _encode(number: int, length: int) -> str:
    characters = []
    if length % 2:
        characters.append(ALPHABET[number & 31])
        number >>= 5
    for _ in range(length // 2):
        characters.append(_PAIRS[number & 1023])
        number >>= 10
    characters.reverse()
    return "".join(characters)


def _decode(text: str) -> int:
    number = 0
    for character in text:
        number = number << 5 | _VALUES[character]
    return number


def make(time_ms: int, partition: int, entropy: int) -> str:
    """A new id. `time_ms` since the epoch; `partition` is the home partition; `entropy` an integer of which the lowest
    65 bits are used."""
    number = (time_ms << 15 | partition) << RANDOM_BITS | entropy & (1 << RANDOM_BITS) - 1
    return _encode(number, LENGTH)


def item_id(message_id: str, number: int) -> str:
    """The id of the item for the `number`th recipient domain of a message for several."""
    return f"{message_id}-{number}"


def message_id(item: str) -> str:
    """The message's id of an item's."""
    return item[:LENGTH]


def time_ms(identifier: str) -> int:
    """When the id was made, in milliseconds since the epoch."""
    return _decode(identifier[:TIME_LENGTH])


def partition(identifier: str) -> int:
    """The home partition that the id names. An item's own partition is its domain's."""
    return _decode(identifier[TIME_LENGTH : TIME_LENGTH + PARTITION_LENGTH])


def is_valid(identifier: str) -> bool:
    """Whether the text has the form of a message's or an item's id."""
    head, dash, number = identifier[:LENGTH], identifier[LENGTH : LENGTH + 1], identifier[LENGTH + 1 :]
    if len(head) != LENGTH or not all(character in _VALUES for character in head):
        return False
    return (not dash and not number) or (dash == "-" and number.isascii() and number.isdigit())
