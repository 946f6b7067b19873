"""HAProxy with send-proxy-v2 before an edge: the client stays who it is, and health checks are neither mail nor noise."""

from __future__ import annotations

import smtplib
import socket
import ssl
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.deployment import DEPLOY, replaced, write
from tests.support.letters import check, letter
from tests.support.nodes import Cluster
from tests.support.processes import Process, Processes, free_port, wait_until
from tests.support.secured import HOSTNAME, USER, SecuredEdge
from tests.support.sink import Sink

PASSWORD = "simple password"
CLIENT = "127.0.0.9"  # not the balancer's own

CONFIGURATION = """\
global
    stats socket {stats} level admin
defaults
    mode tcp
    timeout connect 3s
    timeout check {check_seconds}s
    timeout client 1m
    timeout server 1m
frontend submission
    bind 127.0.0.1:{port}
    default_backend edges
backend edges
    option smtpchk EHLO balancer.test
{servers}
"""


class Balancer:
    """One HAProxy with these server lines, each under a name."""

    def __init__(self, processes: Processes, servers: dict[str, str], *, check_seconds: int = 2) -> None:
        self.port = free_port()
        # A Unix socket's path has to be short.
        self.stats = processes.directory / "stats"
        lines = "\n".join(f"    server {name} {text}" for name, text in servers.items())
        text = CONFIGURATION.format(stats=self.stats, port=self.port, servers=lines, check_seconds=check_seconds)
        path = write(processes.directory, "haproxy.cfg", text)
        self.process: Process = processes.start("haproxy", [programs.require("haproxy"), "-db", "-f", str(path)])
        wait_until(lambda: self.checks() and True, "HAProxy answers", watched=[self.process])

    def checks(self) -> dict[str, str]:
        """Server → the last health check's status, as L7OK, once there was one."""
        try:
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(str(self.stats))
                asking.sendall(b"show stat\n")
                text = asking.makefile().read()
        except OSError:
            return {}
        rows = [line.split(",") for line in text.lstrip("# ").splitlines() if line]
        head = rows[0]
        found = [dict(zip(head, row, strict=False)) for row in rows[1:]]
        return {
            row["svname"]: row["check_status"].lstrip("* ")
            for row in found
            if row["pxname"] == "edges" and row["svname"] != "BACKEND"
        }


def send(edge: SecuredEdge, port: int, content: bytes, *, user: str = "", implicit: bool = False) -> None:
    """A client at `CLIENT` sends one message through the balancer, under TLS with the edge itself."""
    context = ssl.create_default_context(cafile=edge.root)
    if implicit:
        client: smtplib.SMTP = smtplib.SMTP_SSL("localhost", port, context=context, source_address=(CLIENT, 0))
    else:
        client = smtplib.SMTP("127.0.0.1", port, source_address=(CLIENT, 0))
    with client:
        if not implicit:
            client._host = HOSTNAME  # type: ignore[attr-defined]
            client.starttls(context=context)
        if user:
            client.login(user, PASSWORD)
        client.sendmail(USER, ["bob@example.org"], content, ["BODY=8BITMIME"])


@pytest.mark.parametrize("listener", ["proxy", "proxy-implicit"])
def test_the_client_is_who_the_header_says(processes: Processes, cluster: Cluster, sink: Sink, listener: str) -> None:
    """TLS and AUTH through the balancer to the edge; the client's address decides access and stands in every record."""
    edge = SecuredEdge(cluster, [listener])
    edge.add_user(USER, PASSWORD)
    edge.start()
    balancer = Balancer(processes, {"edge": f"127.0.0.1:{edge.port(listener)} check inter 200ms send-proxy-v2"})
    implicit = listener == "proxy-implicit"
    content = letter("through the balancer")
    send(edge, balancer.port, content, user=USER, implicit=implicit)
    check(edge, sink.wait_for(1)[0], content, user=USER, client=CLIENT, via="127.0.0.1")
    with pytest.raises(smtplib.SMTPSenderRefused):
        send(edge, balancer.port, content, implicit=implicit)
    refused = edge.node.events_named("message_refused")[-1]
    assert CLIENT in refused["peer"], refused
    assert refused["via"].partition(":")[0] == "127.0.0.1", refused


def test_the_balancers_network_gives_nobody_a_right(processes: Processes, cluster: Cluster, sink: Sink) -> None:
    """All of loopback may relay, and the balancer is there: a client from elsewhere may not; the one who is there may."""
    edge = SecuredEdge(cluster, ["proxy"], over={"access": {"networks": ["127.0.0.0/8"]}})
    edge.start()
    content = letter("from outside")
    with socket.create_connection(("127.0.0.1", edge.port("proxy"))) as raw:
        raw.sendall(b"PROXY TCP4 198.51.100.7 203.0.113.1 4711 587\r\n")
        stream = raw.makefile("rwb")
        assert stream.readline().startswith(b"220 ")
        for command, reply in ((b"HELO x.test", b"250"), (b"MAIL FROM:<a@x.test>", b"530 5.7.0")):
            stream.write(command + b"\r\n")
            stream.flush()
            line = stream.readline()
            assert line.startswith(reply), (command, line)
    balancer = Balancer(processes, {"edge": f"127.0.0.1:{edge.port('proxy')} check inter 200ms send-proxy-v2"})
    send(edge, balancer.port, content)
    check(edge, sink.wait_for(1)[0], content, client=CLIENT, via="127.0.0.1")


def test_health_checks(processes: Processes, cluster: Cluster) -> None:
    """`option smtpchk` finds the edge healthy with the PROXY header of a check, and on a listener that wants none. A hundred checks leave no refusal and no warning behind."""
    edge = SecuredEdge(cluster, ["proxy", "starttls", "mx"]).start()
    proxy, plain, mx = edge.port("proxy"), edge.port("starttls"), edge.port("mx")
    balancer = Balancer(
        processes,
        {
            "by-default": f"127.0.0.1:{proxy} check inter 100ms send-proxy-v2",
            "with-header": f"127.0.0.1:{proxy} check inter 100ms check-send-proxy send-proxy-v2",
            "version-1": f"127.0.0.1:{proxy} check inter 100ms check-send-proxy send-proxy",
            "other-port": f"127.0.0.1:{proxy} check port {plain} inter 100ms send-proxy-v2",
            "mx": f"127.0.0.1:{mx} check inter 100ms",
        },
    )
    healthy = {"by-default": "L7OK", "with-header": "L7OK", "version-1": "L7OK", "other-port": "L7OK", "mx": "L7OK"}
    wait_until(lambda: balancer.checks() == healthy, "all are healthy", watched=[balancer.process])
    before = edge.node.metric("smtp_connections_total")
    wait_until(
        lambda: edge.node.metric("smtp_connections_total") >= before + 100,
        "a hundred checks more",
        watched=[edge.node.process],
    )
    assert balancer.checks() == healthy
    loud = [event for event in edge.node.events() if event.get("severity") != "info"]
    assert not loud, loud[:3]
    assert not edge.node.events_named("message_refused")
    assert edge.node.metric("smtp_rejects_total") == 0


def test_a_check_without_header_fails_where_one_is_demanded(processes: Processes, cluster: Cluster) -> None:
    """The edge waits for the header and then closes: HAProxy says so, and so does the edge's log."""
    edge = SecuredEdge(cluster, ["proxy"]).start()
    port = edge.port("proxy")
    servers = {"bare": f"127.0.0.1:{port} check port {port} inter 200ms send-proxy-v2"}
    balancer = Balancer(processes, servers, check_seconds=60)  # longer than the edge's patience
    wait_until(
        lambda: "bare" in balancer.checks() and balancer.checks()["bare"] not in ("", "INI"), "HAProxy has checked"
    )
    assert balancer.checks()["bare"] != "L7OK"
    wait_until(lambda: edge.node.events_named("proxy_refused"), "the edge says why", watched=[edge.node.process])


def test_the_shipped_configuration_with_send_proxy(processes: Processes, cluster: Cluster, sink: Sink) -> None:
    """deploy/haproxy/haproxy.cfg with `send-proxy-v2` added as its comment says: mail arrives with the client's address."""
    edge = SecuredEdge(cluster, ["proxy"])
    edge.add_user(USER, PASSWORD)
    edge.start()
    smtp, other, stats = free_port(), free_port(), free_port()
    path = write(processes.directory, "haproxy.cfg", shipped(edge, smtp, other, stats))
    haproxy = processes.start("haproxy", [programs.require("haproxy"), "-db", "-f", str(path)])
    content = letter("as shipped")

    def sent() -> bool:
        try:
            send(edge, smtp, content, user=USER)
        except (OSError, smtplib.SMTPException):
            return False
        return True

    wait_until(sent, "the balancer has an edge", watched=[haproxy])
    check(edge, sink.wait_for(1)[0], content, user=USER, client=CLIENT, via="127.0.0.1")


def shipped(edge: SecuredEdge, smtp: int, other: int, stats: int) -> str:
    """The shipped file with this edge behind port `smtp`."""
    text = (DEPLOY / "haproxy/haproxy.cfg").read_text()
    lines = [line for line in text.splitlines() if not line.strip().startswith("server edge-2")]
    file = Path(DEPLOY / "haproxy/haproxy.cfg")
    assert any("server edge-1" in line for line in lines), file
    lines = [
        f"    server edge-1 127.0.0.1:{edge.port('proxy')} check port {edge.node.http_port} send-proxy-v2"
        if line.strip().startswith("server edge-1")
        else line
        for line in lines
    ]
    return replaced(
        "\n".join(lines) + "\n",
        {
            "bind :25\n": f"bind 127.0.0.1:{other}\n",
            "bind :587\n": f"bind 127.0.0.1:{smtp}\n",
            "bind 127.0.0.1:8405\n": f"bind 127.0.0.1:{stats}\n",
            "log /dev/log local0": "log stdout format raw local0",
            "maxconn 20000": "maxconn 2000",
        },
    )
