"""Nodemailer from npm, as applications use it: a pool of connections, STARTTLS and SMTPS, AUTH, DSN."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import Any

import pytest

from tests.support import npm, programs
from tests.support.letters import check, letter
from tests.support.nodes import Cluster
from tests.support.processes import Processes
from tests.support.secured import HOSTNAME, PASSWORD, USER, SecuredEdge
from tests.support.sink import EXTENSIONS, Received, Sink

# Reads a JSON object {transport, messages} from its input, sends all messages side by side, and prints one line of JSON.
PROGRAM = """
const nodemailer = require(process.argv[1]);
const { transport, messages } = JSON.parse(require("fs").readFileSync(0));
const sender = nodemailer.createTransport(transport);
const send = ({ raw, ...rest }) =>
  sender.sendMail({ ...rest, ...(raw ? { raw: Buffer.from(raw, "base64") } : {}) })
    .then(({ response, accepted }) => ({ response, accepted }))
    .catch((error) => ({ code: error.code, responseCode: error.responseCode, response: error.response }));
Promise.all(messages.map(send)).then((results) => { sender.close(); console.log(JSON.stringify(results)); });
"""


@pytest.fixture
def sink(processes: Processes) -> Sink:
    """A receiving server that speaks DSN."""
    return Sink(processes, keep=True, extensions={"*": [*EXTENSIONS, "DSN"]}).start()


@pytest.fixture
def edge(cluster: Cluster) -> SecuredEdge:
    """One user, whose password has octets beyond ASCII."""
    found = SecuredEdge(cluster, ["starttls", "implicit"])
    found.add_user()
    return found.start()


def nodemailer(
    edge: SecuredEdge, listener: str, messages: list[dict[str, Any]], **transport: Any
) -> list[dict[str, Any]]:
    """What became of each message."""
    options = {
        "host": "localhost",
        "port": edge.port(listener),
        "name": "nodemailer.test",
        "secure": listener == "implicit",
        "requireTLS": listener != "implicit",
        "auth": {"user": USER, "pass": PASSWORD},
        "tls": {"ca": edge.files.root.read_text(), "servername": HOSTNAME},
        **transport,
    }
    module = npm.module_path("nodemailer")
    done = subprocess.run(
        [programs.require("node"), "-e", PROGRAM, str(module)],
        input=json.dumps({"transport": options, "messages": messages}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def raw(content: bytes, **more: Any) -> dict[str, Any]:
    return {"envelope": {"from": USER, "to": ["bob@example.org"]}, "raw": base64.b64encode(content).decode(), **more}


def by_subject(received: list[Received]) -> dict[bytes, Received]:
    return {message.content.partition(b"\r\nSubject: ")[2].partition(b"\r\n")[0]: message for message in received}


@pytest.mark.parametrize("listener", ["starttls", "implicit"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_pool_of_connections(edge: SecuredEdge, sink: Sink, listener: str, mechanism: str) -> None:
    """Thirty messages over at most three connections, reconnecting after five each: all arrive, none twice or changed."""
    contents = [letter(f"pool {number}") for number in range(30)]
    options = {"pool": True, "maxConnections": 3, "maxMessages": 5, "authMethod": mechanism}
    results = nodemailer(edge, listener, [raw(content) for content in contents], **options)
    assert all(result.get("response", "").startswith("250 2.0.0 queued as ") for result in results), results
    found = by_subject(sink.wait_for(30))
    assert len(sink.messages()) == len(found) == 30
    for number, content in enumerate(contents):
        trace = check(edge, found[b"pool %d" % number], content, user=USER)
        assert trace.helo == "nodemailer.test"
        assert trace.queue_id in results[number]["response"]


def test_a_message_that_it_composes(edge: SecuredEdge, sink: Sink) -> None:
    """MIME with an attachment and an eight-bit subject: taken, and delivered with nothing in front but our trace field."""
    message = {
        "from": f"Ann <{USER}>",
        "to": "Bob <bob@example.org>",
        "subject": "Grüße",
        "text": "Hello\n.\nworld\n",
        "html": "<p>Hello</p>",
        "attachments": [{"filename": "a.bin", "content": "x" * 100_000}],
    }
    (result,) = nodemailer(edge, "starttls", [message])
    assert result["accepted"] == ["bob@example.org"], result
    received = sink.wait_for(1)[0]
    start = received.content.index(b"From: Ann")
    check(edge, received, received.content[start:], user=USER)


def test_dsn_requests_reach_the_next_hop(edge: SecuredEdge, sink: Sink) -> None:
    """RET, ENVID, NOTIFY and ORCPT are handed on as they were asked for."""
    content = letter("tell me")
    dsn = {"id": "QQ314159", "return": "headers", "notify": ["success", "delay"], "recipient": "robert@example.org"}
    (result,) = nodemailer(edge, "starttls", [raw(content, dsn=dsn)])
    assert result["accepted"] == ["bob@example.org"], result
    received = sink.wait_for(1)[0]
    check(edge, received, content, user=USER)
    assert {"RET=HDRS", "ENVID=QQ314159"} <= set(received.parameters.split())
    words = dict(word.split("=") for word in received.recipient_parameters[0].split())
    assert set(words["NOTIFY"].split(",")) == {"SUCCESS", "DELAY"}
    assert words["ORCPT"] == "rfc822;robert@example.org"


def test_a_wrong_password(edge: SecuredEdge, sink: Sink) -> None:
    """Nodemailer knows it for what it is: EAUTH with 535."""
    (result,) = nodemailer(edge, "starttls", [raw(letter("no"))], auth={"user": USER, "pass": "wrong"})
    assert (result["code"], result["responseCode"]) == ("EAUTH", 535), result
    assert sink.messages() == []
