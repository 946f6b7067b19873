"""What `doctor` asks of one listener: does it greet, is its TLS sound, does it keep passwords out of the clear, whom does it
believe, and does it relay for strangers. No check goes beyond RCPT: no mail is sent."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence

from relaycluster.cli.doctor.client import NAME, ProbingClient, Said, proxy_header
from relaycluster.cli.doctor.examination import Examination, reason, unverified
from relaycluster.cli.doctor.findings import Finding, failed, ok, skipped, warning
from relaycluster.cli.doctor.relay_attempts import Attempt, attempts
from relaycluster.cli.doctor.targets import Approach, Target, approaches, as_stranger
from relaycluster.cli.doctor.tls import tls

ATTEMPTS_PER_SESSION = 5  # a server may end a session after a few refusals
SILENCE_SECONDS = 1.5


def examine(target: Target, *, source: str = "", timeout_seconds: float = 10.0) -> Iterator[Finding]:
    """Everything about one listener."""
    subject = target.subject
    ways = approaches(target, source)
    stranger = as_stranger(target, ways)
    usable = stranger or next((way for way in ways if way.client), None)
    if target.trusted:
        yield from _proxy_gate(target, ways, timeout_seconds)
    if usable is None:
        yield skipped(
            subject,
            "everything else",
            f"{ways[0].source or 'this machine'} is not in proxy_protocol_from: run it on a balancer, or with --source ADDRESS",
        )
        return
    examination = Examination(target, usable, timeout_seconds)
    try:
        with examination.connect() as client:
            keywords = examination.greeted(client)
    except (OSError, ssl.SSLError) as error:
        yield failed(subject, "greeting", f"{usable.host}:{target.port}: {reason(error)}")
        return
    yield ok(subject, "greeting", "offers " + ", ".join(sorted(keywords)))
    yield from tls(examination)
    yield from _clear(examination)
    if not target.trusted:
        yield from _forged_header(examination)
    yield from _impersonation(examination)
    if stranger is None:
        yield skipped(subject, "open relay", _untestable(target, usable))
    else:
        yield relaying(Examination(target, stranger, timeout_seconds))


def _untestable(target: Target, usable: Approach) -> str:
    what = f"{usable.client} may relay here (access.networks), so what is accepted proves nothing"
    if target.local:
        return f"{what}; only this machine reaches this listener"
    return f"{what}; from another machine: relaycluster doctor --host {target.hostname} --port {target.port}"


# --- open relay


def relaying(examination: Examination) -> Finding:
    """The battery, as a client that may not relay."""
    target, client = examination.target, examination.approach.client
    tries = attempts(target.hostname or "localhost", examination.approach.host, target.domains)
    accepted: list[str] = []
    put_off: list[str] = []
    lost: list[str] = []
    for start in range(0, len(tries), ATTEMPTS_PER_SESSION):
        for attempt, said in _answers(examination, tries[start : start + ATTEMPTS_PER_SESSION]):
            if said is None:
                lost.append(attempt.name)
            elif said.code < 300:
                accepted.append(f"{attempt.name} (MAIL FROM:{attempt.mail} RCPT TO:{attempt.rcpt})")
            elif said.code < 500:
                put_off.append(f"{attempt.name}: {said}")
    if accepted:
        more = f" and {len(accepted) - 3} more" if len(accepted) > 3 else ""
        doubt = (
            ""
            if target.allowed is not None
            else f"; if {client} is an address that may relay there, run it from one that may not"
        )
        text = f"as {client}, {len(accepted)} of {len(tries)} attempts were accepted: {'; '.join(accepted[:3])}{more}{doubt}"
        return failed(target.subject, "open relay", text)
    if put_off or lost:
        first = put_off[0] if put_off else f"{lost[0]}: no answer"
        undecided = len(put_off) + len(lost)
        return warning(
            target.subject,
            "open relay",
            f"as {client}, {len(tries) - undecided} of {len(tries)} attempts were refused, {undecided} undecided: {first}",
        )
    return ok(target.subject, "open relay", f"as {client}, all {len(tries)} attempts were refused")


def _answers(examination: Examination, tries: Sequence[Attempt]) -> Iterator[tuple[Attempt, Said | None]]:
    """The last reply to each attempt: to MAIL where that was refused, else to RCPT. None: the server did not answer."""
    left = list(tries)
    patience = len(left) + 1
    while left and patience:
        patience -= 1
        try:
            with examination.connect() as client:
                examination.greeted(client)
                while left:
                    attempt = left[0]
                    said = client.command(f"EHLO {attempt.ehlo or NAME}")
                    if said.code == 250:
                        said = client.command(f"MAIL FROM:{attempt.mail}")
                    if said.code == 250:
                        said = client.command(f"RCPT TO:{attempt.rcpt}")
                    if said.code == 421:
                        break  # it has had enough of this session
                    left.pop(0)
                    yield attempt, said
        except (OSError, ssl.SSLError):
            continue
    for attempt in left:
        yield attempt, None


# --- passwords


def _clear(examination: Examination) -> Iterator[Finding]:
    """No password is asked for where everybody can read it."""
    target = examination.target
    if target.tls == "implicit":
        return
    check = "AUTH in clear"
    try:
        with examination.connect(under_tls=False) as client:
            client.reply()
            keywords = client.ehlo()
            asked = client.command("AUTH PLAIN")  # without a response: 334 would ask for the password
            mail = client.command("MAIL FROM:<>") if target.require_tls else None
    except OSError as error:
        yield warning(target.subject, check, reason(error))
        return
    if asked.code in (334, 235) or "AUTH" in keywords:
        if target.auth_without_tls and target.local:
            yield ok(target.subject, check, "taken, as configured; only this machine reaches this listener")
        elif target.auth_without_tls:
            yield warning(target.subject, check, "taken, as configured: whoever is on the way reads passwords")
        else:
            yield failed(target.subject, check, f"AUTH PLAIN was answered {asked}")
    else:
        yield ok(target.subject, check, f"refused: {asked.code}")
    if mail is not None:
        text = f"answered {mail}"
        yield (ok if mail.code == 530 else failed)(target.subject, "mail in clear", text)


# --- who is believed


def _proxy_gate(target: Target, ways: Sequence[Approach], timeout_seconds: float) -> Iterator[Finding]:
    """A balancer has to say who the client is; nobody else may."""
    shut = next((way for way in ways if not way.client), None)
    check = "PROXY from a stranger"
    if shut is None:
        yield skipped(target.subject, check, f"{ways[0].source} is a balancer (proxy_protocol_from)")
    else:
        forged = proxy_header(_insider(target), shut.host, target.port)
        said = _first_reply(target, shut, forged, timeout_seconds)
        if said is None:
            yield ok(target.subject, check, f"closed, from {shut.source}")
        else:
            yield failed(target.subject, check, f"from {shut.source}, which is no balancer: answered {said}")
    trusted = next((way for way in ways if way.client), None)
    if trusted is not None:
        check = "no PROXY header"
        bare = Approach(trusted.host, trusted.source, trusted.source)
        said = _first_reply(target, bare, b"", min(SILENCE_SECONDS, timeout_seconds))
        if said is None:
            yield ok(target.subject, check, "not greeted")
        else:
            yield failed(target.subject, check, f"the balancer itself was greeted: {said}")


def _first_reply(target: Target, way: Approach, preface: bytes, timeout_seconds: float) -> Said | None:
    """What the server says first; None: nothing, or it closes."""
    try:
        with ProbingClient(
            way.host,
            target.port,
            source=way.source,
            preface=preface,
            tls=unverified() if target.tls == "implicit" else None,
            timeout_seconds=timeout_seconds,
        ) as client:
            return client.reply()
    except (OSError, ssl.SSLError):
        return None


def _insider(target: Target) -> str:
    """An address that may relay, to claim it; else any."""
    for network in target.allowed or ():
        return str(next(iter(network.hosts()), network.network_address))
    return "192.0.2.77"


def _forged_header(examination: Examination) -> Iterator[Finding]:
    """On a listener that trusts no balancer a PROXY header is a command that does not exist."""
    target, way = examination.target, examination.approach
    check = "PROXY from a stranger"
    insider = _insider(target)
    try:
        with examination.connect(under_tls=False, preface=proxy_header(insider, way.host, target.port)) as client:
            if target.tls == "implicit":
                client.start_tls(unverified())
            client.reply()
            said = client.reply()
            if said.code < 500:
                yield failed(target.subject, check, f"a forged header was answered {said}")
                return
    except (OSError, ssl.SSLError) as error:
        yield ok(target.subject, check, f"refused: {reason(error)}")
        return
    yield ok(target.subject, check, f"refused: {said}")


def _impersonation(examination: Examination) -> Iterator[Finding]:
    """XCLIENT and XFORWARD, by which a trusted peer says who the client is, are for nobody."""
    target = examination.target
    try:
        with examination.connect() as client:
            examination.greeted(client)
            said = client.command(f"XCLIENT ADDR={_insider(target)} LOGIN=postmaster")
    except (OSError, ssl.SSLError) as error:
        yield warning(target.subject, "XCLIENT", reason(error))
        return
    if said.code < 500:
        yield failed(target.subject, "XCLIENT", f"answered {said}")
    else:
        yield ok(target.subject, "XCLIENT", f"refused: {said.code}")
