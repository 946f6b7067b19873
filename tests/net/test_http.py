"""The pages for machines: what they say, to whom, and that nothing else is there."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from relaycluster.net.http import IDLE_SECONDS, MachineSite


class Pages(SynchronousTestCase):
    """One site over an in-memory connection."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.registry = CollectorRegistry()
        Gauge("relaycluster_ring_nodes", "Nodes.", registry=self.registry).set(3)
        self.reasons: list[str] = []
        self.site = MachineSite(self.clock, self.registry, lambda: self.reasons)
        self.site.startFactory()
        self.addCleanup(self.site.stopFactory)

    def ask(self, path: str, method: str = "GET", headers: str = "") -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        transport = StringTransport()
        protocol = self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        protocol.makeConnection(transport)
        protocol.dataReceived(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n".encode())
        head, _, body = transport.value().partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        found = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split()[1]), found, body

    def test_alive(self) -> None:
        """/livez is 200 whatever else is wrong: a restart would not mend Redis."""
        self.reasons = ["redis is away"]
        self.assertEqual(self.ask("/livez")[::2], (200, b"ok\n"))

    def test_ready(self) -> None:
        """/readyz is 200 when there is nothing against it, else 503 with one reason a line, as it is at that moment."""
        self.assertEqual(self.ask("/readyz")[::2], (200, b"ok\n"))
        self.reasons = ["redis is away", "draining\nsince long"]
        self.assertEqual(self.ask("/readyz")[::2], (503, b"redis is away\ndraining since long\n"))
        self.reasons = []
        self.assertEqual(self.ask("/readyz")[0], 200)

    def test_metrics(self) -> None:
        """/metrics shows the registry in the format that Prometheus asks for."""
        status, headers, body = self.ask("/metrics")
        self.assertEqual(status, 200)
        self.assertTrue(headers["content-type"].startswith("text/plain; version="))
        self.assertIn(b"\nrelaycluster_ring_nodes 3.0\n", body)
        _, headers, body = self.ask("/metrics", headers="Accept: application/openmetrics-text; version=1.0.0\r\n")
        self.assertTrue(headers["content-type"].startswith("application/openmetrics-text"))
        self.assertTrue(body.endswith(b"# EOF\n"))

    def test_a_collector_that_fails_is_a_500_without_a_traceback(self) -> None:
        """Nothing of the inside goes to the client."""
        self.reasons = [3]  # type: ignore[list-item]
        status, _, body = self.ask("/readyz")
        self.assertEqual(status, 500)
        self.assertNotIn(b"Traceback", body)
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)

    def test_head(self) -> None:
        """HEAD has the headers of GET and no body (RFC 9110 9.3.2)."""
        for path in ("/livez", "/metrics", "/readyz", "/nothing"):
            status, headers, body = self.ask(path, "HEAD")
            expected_status, expected_headers, expected_body = self.ask(path)
            self.assertEqual((status, body), (expected_status, b""))
            self.assertEqual(headers["content-length"], str(len(expected_body)))
            self.assertEqual(headers["content-type"], expected_headers["content-type"])

    def test_other_methods(self) -> None:
        """Anything but GET and HEAD is 405 and says what is allowed (RFC 9110 15.5.6)."""
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
            status, headers, _ = self.ask("/metrics", method, "Content-Length: 0\r\n")
            self.assertEqual((status, headers["allow"]), (405, "get, head"))

    def test_nothing_else(self) -> None:
        """Other paths are 404, below and above the pages, too."""
        for path in ("/", "/x", "/livez/", "/metrics/x", "/../etc/passwd", "//livez", "/%00", "/LIVEZ"):
            self.assertEqual(self.ask(path)[0], 404, path)

    def test_a_query_changes_nothing(self) -> None:
        """Probes append what they like."""
        self.assertEqual(self.ask("/livez?verbose=1")[0], 200)

    def test_the_server_does_not_introduce_itself(self) -> None:
        """Neither name nor version of the software, and nothing that a proxy may keep."""
        headers = self.ask("/livez")[1]
        self.assertNotIn("server", headers)
        self.assertEqual(headers["cache-control"], "no-store")

    def test_a_silent_client_is_dropped(self) -> None:
        """A connection that asks nothing does not stay."""
        transport = StringTransport()
        protocol = self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        protocol.makeConnection(transport)
        self.clock.advance(IDLE_SECONDS - 1)
        self.assertFalse(transport.disconnecting)
        self.clock.pump([1] * 2)
        self.assertTrue(transport.disconnecting)

    def test_a_further_page(self) -> None:
        """The place for what comes later."""
        self.site.pages.putChild(b"again", self.site.pages.children[b"livez"])
        self.assertEqual(self.ask("/again")[0], 200)
