"""The parameters by which a client asks for delivery status notifications (RFC 3461 section 4), checked to the letter.

What is accepted here goes on, unchanged, to the next hop and into notices: so nothing that could break a header field or a
command line may be in it, not even behind the encoding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from relaycluster.mail.envelope import Notify, NotifyRequest, Ret
from relaycluster.smtp.grammar import GrammarError

# Section 4.4 and 4.2: the longest values that anybody has to take, as they are written.
ENVELOPE_ID_OCTETS: Final = 100
ORIGINAL_RECIPIENT_OCTETS: Final = 500

# Section 4: xtext, with two upper case hexadecimal digits behind `+`. What it stands for is printable ASCII or a space (4.2, 4.4).
_XCHAR = r"(?:[!-*,-<>-~]|\+(?:[2-6][0-9A-F]|7[0-9A-E]))"
_XTEXT = re.compile(_XCHAR + r"++")
_ADDRESS_TYPE = r"[A-Za-z0-9!#$%&'*+/?^_`{|}~-]++"  # an atom; `=` can not stand in a parameter anyway
_ORIGINAL_RECIPIENT = re.compile(_ADDRESS_TYPE + ";" + _XCHAR + r"++")

# RFC 6533 section 3, the type `utf-8`: as xtext without `+` and `=`, `\x{...}` for whatever else, and UTF-8 as it is.
_EMBEDDED = (
    r"\\x\{(?:10|20|2B|3D|5C|7F|[89A-F][0-9A-F]|[1-9A-F][0-9A-F]{2}"
    r"|[1-9A-CE-F][0-9A-F]{3}|D[0-7][0-9A-F]{2}|[1-9A-F][0-9A-F]{4}|10[0-9A-F]{4})\}"
)
_UTF8_RECIPIENT = re.compile(r"(?:[!-*,-<>-\[\]-~\xa0-\u2027\u202a-\U0010ffff]|" + _EMBEDDED + ")++")

_RET: Final[Mapping[str, Ret]] = {ret.value: ret for ret in Ret}
_NOTIFY: Final[Mapping[str, Notify]] = {notify.value: notify for notify in Notify}


def is_xtext(text: str) -> bool:
    """Whether this is `xtext` of at least one character that stands for printable ASCII."""
    return _XTEXT.fullmatch(text) is not None


def parse_ret(value: str | None) -> Ret:
    """RET (section 4.3). Raises `GrammarError`, as the others do."""
    ret = _RET.get((value or "").upper())
    if ret is None:
        raise GrammarError(501, "5.5.4", "RET must be FULL or HDRS")
    return ret


def parse_envelope_id(value: str | None) -> str:
    """ENVID (section 4.4): the value as it was given."""
    if value is None or len(value) > ENVELOPE_ID_OCTETS or not is_xtext(value):
        raise GrammarError(501, "5.5.4", f"ENVID must be xtext of at most {ENVELOPE_ID_OCTETS} characters")
    return value


def parse_notify_request(parameters: Mapping[str, str | None]) -> NotifyRequest | None:
    """NOTIFY (section 4.1) and ORCPT (4.2) among RCPT's parameters; None when neither is there."""
    notify, original = None, ""
    if "NOTIFY" in parameters:
        notify = _parse_notify(parameters["NOTIFY"])
    if "ORCPT" in parameters:
        original = _parse_original_recipient(parameters["ORCPT"])
    return NotifyRequest(notify, original) if notify is not None or original else None


def _parse_notify(value: str | None) -> frozenset[Notify]:
    words = (value or "").upper().split(",")
    if words == ["NEVER"]:
        return frozenset()
    try:
        return frozenset(_NOTIFY[word] for word in words)
    except KeyError:
        raise GrammarError(501, "5.5.4", "NOTIFY must be NEVER, or some of SUCCESS, FAILURE, DELAY") from None


def _parse_original_recipient(value: str | None) -> str:
    if value is not None and len(value.encode("utf-8")) <= ORIGINAL_RECIPIENT_OCTETS:
        if value[:6].lower() == "utf-8;":
            if _UTF8_RECIPIENT.fullmatch(value, 6) is not None:
                return value
        elif _ORIGINAL_RECIPIENT.fullmatch(value) is not None:
            return value
    raise GrammarError(
        501,
        "5.5.4",
        f"ORCPT must be an address type, a semicolon and xtext, at most {ORIGINAL_RECIPIENT_OCTETS} octets",
    )
