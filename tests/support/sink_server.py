"""The receiving SMTP server of the scenarios, as a process: `python sink_server.py CONFIG.json`.

It writes one line of JSON to the ledger for each message *before* it answers the final dot, misbehaves as its rules
say, and counts who is connected. It is strict where a relay must be: it notes bare CR or LF, 8-bit content after an
EHLO that offered no 8BITMIME; pipelining, DSN and SMTPUTF8 that were not offered; and lines that are too long. Standard library only,
and lean, since 20,000 messages must not take minutes. `sink.py` is what tests talk to.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import json
import os
import re
import ssl
import sys
import time
from collections import Counter
from typing import Any

QUEUE_ID = re.compile(rb"\bid ([0-9A-HJKMNP-TV-Z]{26})(?:-\d+)?\b")
LOAD_ID = re.compile(rb"^X-Load-Id: (\S+) (\S+)\r\n", re.MULTILINE)
LONGEST_LINE = re.compile(rb"[^\n]{1000,}")


def digest(content: bytes) -> str:
    """The fingerprint that a load message carries of everything after its X-Load-Id line."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


class Rule:
    """One scripted misbehaviour; see `sink.Rule` for the meaning of the fields."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.stage: str = fields["stage"]
        self.match: str = fields["match"]
        self.reply: str = fields["reply"]
        self.drop: bool = fields["drop"]
        self.delay_seconds: float = fields["delay_seconds"]
        self.first: int = fields["first"]
        self.skip: int = fields["skip"]
        self.after_bytes: int = fields["after_bytes"]
        self.record: bool = fields["record"]
        self.seen: Counter[str] = Counter()

    def applies(self, keys: list[str]) -> bool:
        hits = [key for key in keys if fnmatch.fnmatchcase(key, self.match)]
        if not hits:
            return False
        if not self.first and not self.skip:
            return True
        for key in hits:
            self.seen[key] += 1
        last = self.skip + self.first if self.first else sys.maxsize
        return any(self.skip < self.seen[key] <= last for key in hits)


class Sink:
    """What all sessions share: rules, ledger, counts."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.directory: str = config["directory"]
        self.endpoints: list[tuple[str, int]] = [tuple(endpoint) for endpoint in config["endpoints"]]
        self.extensions: dict[str, list[str]] = config["extensions"]
        self.keep: bool = config["keep"]
        self.contexts: dict[str, ssl.SSLContext] = {}
        for endpoint, (certificate, key) in config["certificates"].items():
            context = self.contexts[endpoint] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
        self.rules: list[Rule] = []
        self.rules_by_stage: dict[str, list[Rule]] = {}
        self.servers: dict[str, asyncio.Server] = {}
        self.sessions: set[Session] = set()
        self.ledger = os.open(f"{self.directory}/ledger.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.number = 0
        self.connections: Counter[str] = Counter()
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def set_rules(self, rules: list[dict[str, Any]]) -> None:
        self.rules = [Rule(fields) for fields in rules]
        self.rules_by_stage = {}
        for rule in self.rules:
            self.rules_by_stage.setdefault(rule.stage, []).append(rule)

    def rule(self, stage: str, keys: list[str]) -> Rule | None:
        for rule in self.rules_by_stage.get(stage, ()):
            if rule.applies(keys):
                return rule
        return None

    def enter(self, key: str) -> None:
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])

    def leave(self, key: str) -> None:
        self.now[key] -= 1

    def record(self, fields: dict[str, Any], content: bytes) -> None:
        self.number += 1
        if self.keep:
            with open(f"{self.directory}/content/{self.number}", "wb") as file:
                file.write(content)
        load = LOAD_ID.search(content)
        queue_id = QUEUE_ID.search(content, 0, 2000)
        line = {
            "number": self.number,
            "at": time.monotonic(),
            **fields,
            "size": len(content),
            "digest": digest(content),
            "load_id": load[1].decode() if load else "",
            "intact": bool(load and digest(content[load.end() :]).encode() == load[2]),
            "queue_id": queue_id[1].decode() if queue_id else "",
        }
        os.write(self.ledger, json.dumps(line).encode() + b"\n")

    async def listen(self, endpoint: str) -> None:
        if endpoint not in self.servers:
            host, _, port = endpoint.rpartition(":")
            loop = asyncio.get_running_loop()
            self.servers[endpoint] = await loop.create_server(
                lambda: Session(self, endpoint), host, int(port), backlog=1024
            )

    async def refuse(self, endpoint: str) -> None:
        server = self.servers.pop(endpoint, None)
        if server is not None:
            server.close()

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One JSON object a line: what to do; one JSON object back."""
        async for line in reader:
            ask = json.loads(line)
            answer: dict[str, Any] = {}
            match ask["do"]:
                case "rules":
                    self.set_rules(ask["rules"])
                case "listen":
                    await self.listen(ask["endpoint"])
                case "refuse":
                    await self.refuse(ask["endpoint"])
                case "drop":
                    for session in list(self.sessions):
                        session.transport.abort()
                case "stat":
                    answer = {
                        "messages": self.number,
                        "sessions": len(self.sessions),
                        "connections": dict(self.connections),
                        "now": dict(self.now),
                        "most": dict(self.most),
                    }
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


class Session(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, sink: Sink, endpoint: str) -> None:
        self.sink = sink
        self.endpoint = endpoint
        self.buffer = bytearray()
        self.out: list[bytes] = []
        self.waiting = False
        self.in_content = False
        self.scanned = 0
        self.domain = ""
        self.helo = ""
        self.eight_bit_offered = True
        self.tls = False
        self.context = sink.contexts.get(endpoint, sink.contexts.get("*"))
        self.problems: list[str] = []
        self.dropped: Rule | None = None
        self.reset()

    def reset(self) -> None:
        self.reverse_path: str | None = None
        self.parameters = ""
        self.recipients: list[str] = []
        self.recipient_parameters: list[str] = []
        self.chunk: int | None = None
        self.chunk_is_last = False
        self.chunks = bytearray()

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}"
        self.sink.sessions.add(self)
        self.sink.connections[self.endpoint] += 1
        self.sink.enter(self.endpoint)
        self.answer("greeting", [self.endpoint], "220 sink.test ESMTP")
        self.advance()

    def connection_lost(self, error: Exception | None) -> None:
        self.sink.sessions.discard(self)
        self.sink.leave(self.endpoint)
        if self.domain:
            self.sink.leave(self.domain)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.advance()

    def advance(self) -> None:
        """Take what is complete in the buffer, then send all replies at once."""
        while not self.waiting and not self.transport.is_closing():
            if self.in_content:
                if not self.take_content():
                    break
            elif self.chunk is not None:
                if not self.take_chunk(self.chunk):
                    break
            else:
                end = self.buffer.find(b"\r\n")
                if end < 0:
                    if len(self.buffer) > 4096:
                        self.problems.append("command line too long")
                        self.transport.abort()
                    break
                line = bytes(self.buffer[:end])
                del self.buffer[: end + 2]
                self.command(line)
        self.flush()

    def flush(self) -> None:
        if self.out:
            self.transport.write(b"".join(self.out))
            self.out.clear()

    # -- replies and misbehaviour

    def answer(self, stage: str, keys: list[str], reply: str, rule: Rule | None = None) -> bool:
        """Send `reply`, or what a rule says instead. Whether the answer is the good one."""
        if not self.sink.rules:
            self.out.append(reply.encode() + b"\r\n")
            return True
        rule = rule or self.sink.rule(stage, keys)
        text = rule.reply or reply if rule is not None else reply
        if rule is not None and rule.delay_seconds:
            self.waiting = True
            self.flush()
            asyncio.get_running_loop().call_later(rule.delay_seconds, self.resume, rule, text)
        else:
            self.say(rule, text)
        return rule is None or not (rule.reply or rule.drop)

    def say(self, rule: Rule | None, text: str) -> None:
        if rule is None or rule.reply or not rule.drop:
            self.out.append(text.encode("utf-8", "surrogateescape") + b"\r\n")
        if rule is not None and rule.drop:
            self.flush()
            self.transport.close()

    def resume(self, rule: Rule, text: str) -> None:
        if not self.transport.is_closing():
            self.waiting = False
            self.say(rule, text)
            self.advance()

    def read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # -- the conversation

    def command(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        verb = text[:4].upper()
        if self.buffer and "PIPELINING" not in self.offered():
            self.problems.append(f"pipelined after {text[:40]!r} though it was not offered")
        if verb in ("EHLO", "HELO"):
            self.reset()
            self.helo = text[5:].strip()
            keywords = self.offered()
            self.eight_bit_offered = verb == "EHLO" and "8BITMIME" in keywords
            words = ["sink.test", *keywords] if verb == "EHLO" else ["sink.test"]
            lines = [f"250{' ' if n == len(words) - 1 else '-'}{word}" for n, word in enumerate(words)]
            self.answer("ehlo", [self.endpoint, verb], "\r\n".join(lines))
        elif verb == "MAIL":
            path, _, self.parameters = text[10:].partition(">")
            self.check(path, self.parameters)
            if self.answer("mail", [path.lstrip("<"), self.endpoint], "250 2.1.0 ok"):
                self.reverse_path = path.lstrip("<")
                self.parameters = self.parameters.strip()
        elif verb == "RCPT":
            if self.reverse_path is None:
                self.out.append(b"503 5.5.1 MAIL first\r\n")
                return
            path, _, parameters = text[8:].partition(">")
            recipient = path.lstrip("<")
            self.check(path, parameters)
            self.attribute(recipient.rpartition("@")[2].lower())
            if self.answer("rcpt", [recipient, self.endpoint], "250 2.1.5 ok"):
                self.recipients.append(recipient)
                self.recipient_parameters.append(parameters.strip())
        elif verb == "DATA":
            if not self.recipients:
                self.out.append(b"554 5.5.1 no valid recipients\r\n")
            elif self.answer("data", [*self.recipients, self.endpoint], "354 go ahead"):
                self.in_content = True
                self.scanned = 0
                self.buffer[:0] = b"\r\n"  # so that a dot on the first line is found like any other
        elif verb == "BDAT" and "CHUNKING" in self.offered():
            words = text.split()
            self.chunk, self.chunk_is_last = int(words[1]), len(words) > 2
        elif verb == "RSET":
            self.reset()
            self.answer("rset", [self.endpoint], "250 2.0.0 ok")
        elif verb == "NOOP":
            self.answer("noop", [self.endpoint], "250 2.0.0 ok")
        elif verb == "QUIT":
            self.out.append(b"221 2.0.0 bye\r\n")
            self.flush()
            self.transport.close()
        elif verb == "STAR" and self.context is not None and not self.tls:
            if not self.answer("starttls", [self.endpoint], "220 2.0.0 go ahead"):
                return
            self.flush()
            if self.buffer:
                self.problems.append("commands in clear behind STARTTLS")
                self.buffer.clear()
            self.waiting = True
            self.handshake = asyncio.get_running_loop().create_task(self.start_tls(self.context))
        else:
            self.out.append(b"500 5.5.1 what?\r\n")

    def check(self, path: str, parameters: str) -> None:
        """Note what was not offered, on MAIL and RCPT."""
        used = {word.partition("=")[0] for word in parameters.split()}
        if used & {"RET", "ENVID", "NOTIFY", "ORCPT"} and "DSN" not in self.offered():
            self.problems.append(f"{parameters!r} though DSN was not offered")
        if ("SMTPUTF8" in used or not (path + parameters).isascii()) and "SMTPUTF8" not in self.offered():
            self.problems.append(f"{path + parameters!r} though SMTPUTF8 was not offered")

    def offered(self) -> list[str]:
        extensions = self.sink.extensions
        keywords = extensions.get(self.endpoint, extensions["*"])
        return [*keywords, "STARTTLS"] if self.context is not None and not self.tls else keywords

    async def start_tls(self, context: ssl.SSLContext) -> None:
        try:
            transport = await asyncio.get_running_loop().start_tls(self.transport, self, context, server_side=True)
        except (OSError, ssl.SSLError):
            self.transport.abort()
            return
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.tls = True
        self.waiting = False
        self.helo = ""
        self.reset()
        self.advance()

    def attribute(self, domain: str) -> None:
        """A connection belongs to the domain of its newest transaction."""
        if domain != self.domain:
            if self.domain:
                self.sink.leave(self.domain)
            self.domain = domain
            self.sink.enter(domain)

    def take_content(self) -> bool:
        keys = [*self.recipients, self.endpoint]
        rule = self.sink.rule("content", keys) if self.scanned == 0 else self.dropped
        self.dropped = rule
        if rule is not None and rule.delay_seconds:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(rule.delay_seconds, self.read_on)
        elif rule is not None and len(self.buffer) - 2 >= rule.after_bytes:
            self.transport.abort()
            return False
        end = self.buffer.find(b"\r\n.\r\n", max(0, self.scanned - 4))
        if end < 0:
            self.scanned = len(self.buffer)
            return False
        # Each line loses one leading dot (RFC 5321 4.5.2); the first line stands behind the CRLF that we put there.
        content = bytes(self.buffer[: end + 2]).replace(b"\r\n.", b"\r\n")[2:]
        del self.buffer[: end + 5]
        self.in_content = False
        self.taken(content)
        return True

    def take_chunk(self, octets: int) -> bool:
        """RFC 3030: the octets of BDAT as they are; the message is complete with LAST."""
        if len(self.buffer) < octets:
            return False
        self.chunks += self.buffer[:octets]
        del self.buffer[:octets]
        self.chunk = None
        if self.chunk_is_last:
            content = bytes(self.chunks)
            self.parameters = f"{self.parameters} BDAT".strip()
            self.taken(content)
        else:
            self.out.append(b"250 2.0.0 go on\r\n")
        return True

    def taken(self, content: bytes) -> None:
        """The message is complete."""
        keys = [*self.recipients, self.endpoint]
        lines = content.count(b"\r\n")
        if lines != content.count(b"\n") or lines != content.count(b"\r"):
            self.problems.append("bare CR or LF in content")
        if not self.eight_bit_offered and not content.isascii():
            self.problems.append("8-bit content though 8BITMIME was not offered")
        if LONGEST_LINE.search(content):
            self.problems.append("a line of more than 998 octets")
        rule = self.sink.rule("dot", keys)
        if rule is None or rule.record or not (rule.reply or rule.drop):
            fields = {
                "endpoint": self.endpoint,
                "peer": self.peer,
                "helo": self.helo,
                "reverse_path": self.reverse_path,
                "recipients": self.recipients,
                "parameters": self.parameters,
                "recipient_parameters": self.recipient_parameters,
                "tls": self.tls,
                "problems": self.problems,
            }
            self.sink.record(fields, content)
            self.problems = []
        if rule is None:
            self.out.append(b"250 2.0.0 taken\r\n")
        else:
            self.answer("dot", keys, "250 2.0.0 taken", rule)
        self.reset()


async def serve(config: dict[str, Any]) -> None:
    sink = Sink(config)
    for host, port in sink.endpoints:
        await sink.listen(f"{host}:{port}")
    server = await asyncio.start_unix_server(sink.control, f"{sink.directory}/control", limit=1 << 24)
    await server.serve_forever()


if __name__ == "__main__":
    with open(sys.argv[1]) as config_file:
        asyncio.run(serve(json.load(config_file)))
