"""What became of one recipient in one attempt: a closed union.

Every place that looks at an outcome ends in `assert_never`, so that a new kind cannot be overlooked.
"""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from relaycluster.mail.reply import Reply


class Stage(Enum):
    """Where in the attempt it was decided."""

    ROUTING = "routing"  # DNS, routes, our own limits
    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    TLS = "tls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # the reply to DATA
    CONTENT = "content"  # while the content was sent
    FINAL_DOT = "final-dot"  # sent, and its reply not (yet) seen, or seen


@frozen
class Delivered:
    """The next hop took responsibility: 2yz after the final dot. With `dsn` also for telling of success: it speaks DSN, and what the
    sender wished to hear went along (RFC 3461 5.2.1)."""

    reply: Reply
    host: str = ""
    dsn: bool = False


@frozen
class Deferred:
    """Try again later. `may_have_arrived` when the final dot was written and its reply never came: a later attempt can
    make a duplicate."""

    reply: Reply
    stage: Stage
    host: str = ""
    may_have_arrived: bool = False


@frozen
class Failed:
    """Never try again; the sender gets a notice."""

    reply: Reply
    stage: Stage
    host: str = ""


Outcome = Delivered | Deferred | Failed
