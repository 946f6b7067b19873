"""How a listener is come to, again and again, in one way."""

from __future__ import annotations

import ssl

from attrs import frozen

from relaycluster.cli.doctor.client import NAME, NoReply, ProbingClient
from relaycluster.cli.doctor.targets import Approach, Target


def unverified(minimum: ssl.TLSVersion = ssl.TLSVersion.MINIMUM_SUPPORTED) -> ssl.SSLContext:
    """A context for looking, not for trusting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = minimum
    return context


@frozen
class Examination:
    """One listener, approached in one way."""

    target: Target
    approach: Approach
    timeout_seconds: float

    def connect(self, *, under_tls: bool | None = None, preface: bytes | None = None) -> ProbingClient:
        """A client that has not read the greeting. `under_tls`: from the first octet; by default, if the listener is so."""
        implicit = self.target.tls == "implicit" if under_tls is None else under_tls
        return ProbingClient(
            self.approach.host,
            self.target.port,
            source=self.approach.source,
            preface=self.approach.preface if preface is None else preface,
            tls=unverified() if implicit else None,
            name=self.target.hostname,
            timeout_seconds=self.timeout_seconds,
        )

    def greeted(self, client: ProbingClient, ehlo: str = NAME) -> dict[str, str]:
        """Read the greeting and say EHLO, under TLS where that is to be had; the keywords. Raises `NoReply`."""
        greeting = client.reply()
        if greeting.code != 220:
            raise NoReply(f"greeted with {greeting}")
        keywords = client.ehlo(ehlo)
        if "STARTTLS" in keywords:
            said = client.command("STARTTLS")
            if said.code != 220:
                raise NoReply(f"STARTTLS was answered {said}")
            client.start_tls(unverified())
            keywords = client.ehlo(ehlo)
        return keywords


def reason(error: Exception) -> str:
    """What went wrong, for a person."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return str(error.reason).lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
