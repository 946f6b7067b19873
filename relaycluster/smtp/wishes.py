"""What a sender asked to be told, as parameters of MAIL and RCPT for a next hop that offers DSN: as they were given (RFC 3461 5.2.1)."""

from __future__ import annotations

from relaycluster.mail.envelope import Envelope, Notify, NotifyRequest
from relaycluster.mail.xtext import orcpt_in_ascii


def of_mail(envelope: Envelope) -> str:
    """RET and ENVID, each with a blank before it; empty when there is neither."""
    ret = "" if envelope.ret is None else f" RET={envelope.ret.value}"
    return f"{ret} ENVID={envelope.envelope_id}" if envelope.envelope_id else ret


def rcpt_commands(envelope: Envelope) -> list[str]:
    """A RCPT command for each recipient, with its NOTIFY and ORCPT."""
    requests = envelope.requests
    return [
        f"RCPT TO:<{recipient.text}>{_of_rcpt(requests[recipient.text]) if recipient.text in requests else ''}\r\n"
        for recipient in envelope.recipients
    ]


def _of_rcpt(request: NotifyRequest) -> str:
    # The form of RFC 6533 3 that every host may get; a host with SMTPUTF8 reads it as well.
    orcpt = f" ORCPT={orcpt_in_ascii(request.original_recipient)}" if request.original_recipient else ""
    if request.notify is None:
        return orcpt
    return f" NOTIFY={','.join([each.value for each in Notify if each in request.notify]) or 'NEVER'}{orcpt}"
