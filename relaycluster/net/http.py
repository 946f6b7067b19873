"""The port for machines: `/metrics`, `/livez` and `/readyz`, for GET and HEAD, and nothing else yet.

`/livez` is answered by the reactor alone: it is 200 for as long as the process turns. `/readyz` says whether this node
may take mail, for balancers and orchestrators, and why not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request as HTTPRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

IDLE_SECONDS = 30
_PLAIN = "text/plain; charset=utf-8"
_METHODS = (b"GET", b"HEAD")


class _Page(Resource):
    """A resource of one text that is made anew for each request."""

    def __init__(self, answer: Callable[[Request], tuple[int, str, bytes]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._answer = answer

    def getChild(self, path: bytes, request: Request) -> IResource:
        return _NOT_FOUND

    def render(self, request: Request) -> bytes | int:
        if request.method not in _METHODS:
            request.setHeader(b"Allow", b", ".join(_METHODS))
            code, kind, body = 405, _PLAIN, b"only GET and HEAD\n"
        else:
            code, kind, body = self._answer(request)
        request.setResponseCode(code)
        request.responseHeaders.removeHeader(b"server")
        request.setHeader(b"Content-Type", kind.encode("ascii"))
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.setHeader(b"Cache-Control", b"no-store")
        if request.method != b"HEAD":
            return body
        request.write(b"")  # sends the headers, with the length of what is not sent (RFC 9110 9.3.2)
        request.finish()
        return NOT_DONE_YET


_NOT_FOUND = _Page(lambda _: (404, _PLAIN, b"not found\n"))


class MachineSite(Site):
    """The HTTP server of a node, for an endpoint to listen with.

    `registry` is what `/metrics` shows. `readiness` returns why this node may not take mail, each reason one line;
    nothing when it may. Further pages go below `pages`.
    """

    def __init__(
        self, reactor: IReactorTime, registry: CollectorRegistry, readiness: Callable[[], Sequence[str]]
    ) -> None:
        def metrics(request: Request) -> tuple[int, str, bytes]:
            accept = request.getHeader("accept") or ""
            encode, kind = choose_encoder(accept)
            return 200, kind, encode(registry)

        def ready(_: Request) -> tuple[int, str, bytes]:
            reasons = readiness()
            text = "".join(f"{' '.join(reason.split())}\n" for reason in reasons)
            return (503, _PLAIN, text.encode()) if reasons else (200, _PLAIN, b"ok\n")

        self.pages = _Page(lambda _: (404, _PLAIN, b"not found\n"))
        self.pages.putChild(b"metrics", _Page(metrics))
        self.pages.putChild(b"livez", _Page(lambda _: (200, _PLAIN, b"ok\n")))
        self.pages.putChild(b"readyz", _Page(ready))
        super().__init__(self.pages, timeout=IDLE_SECONDS, reactor=reactor, parsePOSTFormSubmission=False)  # type: ignore[no-untyped-call]
        self.displayTracebacks = False

    def log(self, request: HTTPRequest) -> None:
        """No access log: machines ask every few seconds."""
