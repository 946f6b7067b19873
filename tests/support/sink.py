"""A receiving SMTP server for scenarios: what arrived, when, and over how many connections; misbehaves on request."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

from tests.support.processes import Process, Processes, free_port, wait_until

EXTENSIONS = ("PIPELINING", "SIZE 0", "8BITMIME", "ENHANCEDSTATUSCODES")


@frozen
class Rule:
    """One scripted misbehaviour; the first rule that applies counts.

    `stage` is where: greeting, ehlo, starttls, mail, rcpt, data, content, dot. `match` is a shell pattern: on the recipient (rcpt,
    data, content, dot), the reverse-path (mail), "EHLO" or "HELO" (ehlo), or, everywhere, the endpoint "127.0.0.5:2525".
    `reply` is said instead of the good one; `drop` closes the connection after it, or without a word if there is none;
    `delay_seconds` waits first, the session standing still. `first` limits the rule to the first n times for each thing
    it matched: greylisting is `Rule("rcpt", reply="450 4.7.1 later", first=1)`; `skip` lets that many pass before.
    `after_bytes` is for the stage content: the connection is reset when so much has come; with `delay_seconds` it is read
    slowly instead, with a pause after each piece. `record` at the stage dot: the message is taken nevertheless, as by a
    host that dies between accepting and saying so.
    """

    stage: str
    match: str = "*"
    reply: str = ""
    drop: bool = False
    delay_seconds: float = 0.0
    first: int = 0
    skip: int = 0
    after_bytes: int = 0
    record: bool = False


@frozen
class Received:
    """One message that the sink took."""

    number: int
    at: float  # seconds on this host's monotonic clock, the same as time.monotonic() in the test
    endpoint: str
    peer: str
    helo: str  # the name after EHLO or HELO: which node sent it
    reverse_path: str
    recipients: list[str]
    parameters: str  # of MAIL; and "BDAT" when the content came so
    recipient_parameters: list[str]  # of each RCPT
    tls: bool
    problems: list[str]  # what the client did wrong; see sink_server
    size: int
    digest: str
    load_id: str
    intact: bool  # a load message's content is what was sent, byte for byte, behind the trace fields
    queue_id: str  # of the first Received: field
    _content: Path = field(repr=False)

    @property
    def content(self) -> bytes:
        """The message as it came, dots unstuffed. Only from a sink that keeps content."""
        return self._content.read_bytes()


@frozen
class Stat:
    """The sink's counts. `now` and `most` are the connections at this moment, and the highest number of simultaneous ones,
    by endpoint and by domain."""

    messages: int
    sessions: int
    connections: dict[str, int]
    now: dict[str, int]
    most: dict[str, int]


class Sink:
    """One sink process on several endpoints of 127.0.0.x, all with the same port."""

    def __init__(
        self,
        processes: Processes,
        name: str = "sink",
        *,
        hosts: Sequence[str] = ("127.0.0.1",),
        port: int = 0,
        keep: bool = False,
        extensions: dict[str, Sequence[str]] | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        certificates: dict[str, tuple[Path, Path]] | None = None,
    ) -> None:
        """`keep` stores each content. `extensions` maps an endpoint's host, or "*", to the keywords after EHLO. With
        `certificate` and `key` (PEM) it offers STARTTLS; with `certificates`, on these hosts, each with its own."""
        self.port = port or free_port()
        self.hosts = list(hosts)
        self.directory = processes.directory / name
        (self.directory / "content").mkdir(parents=True)
        offered = {"*": EXTENSIONS, **(extensions or {})}
        config = {
            "directory": str(self.directory),
            "endpoints": [(host, self.port) for host in hosts],
            "keep": keep,
            "extensions": {host if host == "*" else f"{host}:{self.port}": list(offered[host]) for host in offered},
            "certificates": {
                **({"*": (str(certificate), str(key))} if certificate else {}),
                **{f"{host}:{self.port}": [str(file) for file in pair] for host, pair in (certificates or {}).items()},
            },
        }
        (self.directory / "config.json").write_text(json.dumps(config))
        program = str(Path(__file__).with_name("sink_server.py"))
        self.process: Process = processes.add(name, [sys.executable, program, "config.json"], directory=self.directory)
        self._read = 0
        self._messages: list[Received] = []

    @property
    def endpoints(self) -> list[str]:
        """For `[[destination]] hosts`."""
        return [f"{host}:{self.port}" for host in self.hosts]

    def start(self) -> Sink:
        """Start, or start again with the same ledger; returns when it listens."""
        (self.directory / "control").unlink(missing_ok=True)
        self.process.start()
        wait_until((self.directory / "control").exists, "the sink listens", watched=[self.process])
        return self

    def _ask(self, **request: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(10)
            control.connect(str(self.directory / "control"))
            control.sendall(json.dumps(request).encode() + b"\n")
            with control.makefile("rb") as answer:
                found: dict[str, Any] = json.loads(answer.readline())
                return found

    def rules(self, *rules: Rule) -> None:
        """From now on these rules, and no others."""
        self._ask(do="rules", rules=[asdict(rule) for rule in rules])

    def refuse(self, endpoint: str) -> None:
        """Stop listening there: connections are refused. Those that are open stay."""
        self._ask(do="refuse", endpoint=endpoint)

    def listen(self, endpoint: str) -> None:
        """Listen there (again)."""
        self._ask(do="listen", endpoint=endpoint)

    def drop_all(self) -> None:
        """Reset every open connection."""
        self._ask(do="drop")

    def stat(self) -> Stat:
        return Stat(**self._ask(do="stat"))

    def messages(self) -> list[Received]:
        """All messages so far, in the order of arrival. Reads only what is new."""
        path = self.directory / "ledger.jsonl"
        if path.exists():
            with path.open("rb") as ledger:
                ledger.seek(self._read)
                data = ledger.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.splitlines():
                fields = json.loads(line)
                self._messages.append(Received(**fields, content=self.directory / "content" / str(fields["number"])))
        return self._messages

    def wait_for(self, count: int, timeout_seconds: float = 30.0, *, watched: Sequence[Process] = ()) -> list[Received]:
        """All messages, when there are at least `count`."""
        wait_until(
            lambda: len(self.messages()) >= count, f"the sink has {count} messages", timeout_seconds, watched=watched
        )
        return self.messages()

    def problems(self) -> list[str]:
        """Everything that any client did wrong."""
        return [problem for message in self.messages() for problem in message.problems]
