"""Who is at the other end of an inbound connection: facts that decide access and go into logs and `Received:`."""

from __future__ import annotations

from attrs import frozen


@frozen
class TLSFacts:
    """What was negotiated: `version` as "TLSv1.3", `cipher` as OpenSSL names it."""

    version: str
    cipher: str

    def __str__(self) -> str:
        """Both, for logs and `Received:`."""
        return f"{self.version} {self.cipher}"


@frozen
class Session:
    """One inbound SMTP session, as it stands now; a new value after each EHLO, STARTTLS or AUTH.

    `id` is short and unique within the process's life; `listener` is the configured address ("0.0.0.0:587"),
    `mode` "submission" or "mx". `helo` is empty before EHLO or HELO; `esmtp` tells which of the two it was. `user` is the name
    that AUTH proved, empty without. `via` is the balancer's address when a PROXY header told who the client is: `peer_*`
    and `local_*` are then what the header says.
    """

    id: str
    listener: str
    mode: str
    peer_address: str
    peer_port: int
    local_address: str
    local_port: int
    helo: str = ""
    esmtp: bool = False
    tls: TLSFacts | None = None
    user: str = ""
    via: str = ""
