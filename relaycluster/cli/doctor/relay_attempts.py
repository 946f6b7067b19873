"""The ways in which strangers make a relay send their mail on: what is tried, without a socket.

A listener that answers one of these with 250, to a client that may not relay, is an open relay or will be used as one.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from relaycluster.mail.trace import address_literal

# RFC 2606: nobody's, and never will be. No attempt goes beyond RCPT, so that no mail is sent anywhere.
ELSEWHERE = "elsewhere.example"
PROBE = "relay-probe"


@frozen
class Attempt:
    """One transaction up to RCPT: what stands behind `EHLO `, `MAIL FROM:` and `RCPT TO:`; `ehlo` empty for the usual name."""

    name: str
    mail: str
    rcpt: str
    ehlo: str = ""


def attempts(hostname: str, address: str, domains: Sequence[str], elsewhere: str = ELSEWHERE) -> list[Attempt]:
    """All of them, against a server of this name, at this IP address, that takes mail for these domains from anyone.

    `domains` with a wildcard count as a domain below it. Nothing here is mail for one of them.
    """
    literal = f"[{address_literal(address)}]"
    ours = [domain.replace("*", "sub", 1) for domain in domains]
    local = [*ours, hostname, literal]
    stranger = f"<{PROBE}@{elsewhere}>"
    target = f"{PROBE}@{elsewhere}"
    found = [
        Attempt("plain", stranger, f"<{target}>"),
        Attempt("null sender", "<>", f"<{target}>"),
        Attempt("upper case", stranger.upper(), f"<{target.upper()}>"),
        Attempt("mixed case", stranger, f"<{PROBE.title()}@{elsewhere.title()}>"),
        Attempt("trailing dot", stranger, f"<{target}.>"),
        Attempt("quoted local-part", stranger, f'<"{PROBE}"@{elsewhere}>'),
        Attempt("quoted mailbox", stranger, f'<"{target}">'),
        Attempt("percent, no domain", stranger, f"<{PROBE}%{elsewhere}>"),
        Attempt("bang, no domain", stranger, f"<{elsewhere}!{PROBE}>"),
        Attempt("no brackets", stranger, target),
        Attempt("address literal", stranger, f"<{PROBE}@[192.0.2.1]>"),
        Attempt("IPv6 address literal", stranger, f"<{PROBE}@[IPv6:2001:db8::1]>"),
        Attempt("literal without brackets", stranger, f"<{PROBE}@192.0.2.1>"),
        Attempt("no domain", stranger, f"<{PROBE}>"),
        Attempt("server's name in EHLO", stranger, f"<{target}>", ehlo=hostname),
        Attempt("localhost in EHLO", stranger, f"<{target}>", ehlo="localhost"),
        Attempt("own literal in EHLO", stranger, f"<{target}>", ehlo=literal),
        Attempt("AUTH parameter", f"{stranger} AUTH={PROBE}+40{hostname}", f"<{target}>"),
        Attempt("AUTH parameter, null", f"{stranger} AUTH=<>", f"<{target}>"),
    ]
    for here in dict.fromkeys(local):
        found += [
            Attempt(f"sender at {here}", f"<{PROBE}@{here}>", f"<{target}>"),
            Attempt(f"postmaster at {here}", f"<postmaster@{here}>", f"<{target}>"),
            Attempt(f"percent at {here}", stranger, f"<{PROBE}%{elsewhere}@{here}>"),
            Attempt(f"percent at {here}, null sender", "<>", f"<{PROBE}%{elsewhere}@{here}>"),
            Attempt(f"two percents at {here}", stranger, f"<{PROBE}%{elsewhere}%{here}@{here}>"),
            Attempt(f"bang at {here}", stranger, f"<{elsewhere}!{PROBE}@{here}>"),
            Attempt(f"quoted mailbox at {here}", stranger, f'<"{target}"@{here}>'),
            Attempt(f"quoted percent at {here}", stranger, f'<"{PROBE}%{elsewhere}"@{here}>'),
            Attempt(f"escaped at at {here}", stranger, f'<"{PROBE}\\@{elsewhere}"@{here}>'),
            Attempt(f"two ats at {here}", stranger, f"<{target}@{here}>"),
            Attempt(f"source route by {here}", stranger, f"<@{here}:{target}>"),
            Attempt(f"source route by {here}, null sender", "<>", f"<@{here}:{target}>"),
            Attempt(f"long source route by {here}", stranger, f"<@{here},@{here}:{target}>"),
            Attempt(f"two paths at {here}", stranger, f"<{PROBE}@{here}>,<{target}>"),
        ]
    for here in dict.fromkeys([*ours, hostname]):
        found += [
            Attempt(f"{here} within another domain", stranger, f"<{PROBE}@{here}.{elsewhere}>"),
            Attempt(f"another domain that ends as {here}", stranger, f"<{PROBE}@not{here}>"),
        ]
    return found
