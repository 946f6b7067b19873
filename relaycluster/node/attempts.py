"""What the log hears of an attempt that did not go the plain way."""

from __future__ import annotations

from relaycluster import events
from relaycluster.mail import outcome
from relaycluster.mail.item import Claim
from relaycluster.mail.outcome import Outcome, Stage
from relaycluster.net.outbound import OutboundConnection, Target
from relaycluster.node.history import via_of
from relaycluster.node.means import Means


def attempted(
    means: Means,
    domain: str,
    claim: Claim | None,
    target: Target,
    result: Outcome,
    seconds: float,
    connection: OutboundConnection | None = None,
) -> None:
    """A transaction with a host ended so, or no connection to it could be made."""
    if claim is not None:
        via = via_of(target, connection.tls_used if connection is not None else "")
        means.settlement.tried.add(claim, via, result, seconds)
    stage = Stage.FINAL_DOT if isinstance(result, outcome.Delivered) else result.stage
    means.log.emit(
        events.Attempt(
            claim.item.id if claim is not None else "",
            domain,
            target.host,
            f"{target.address}:{target.port}",
            stage.value,
            connection.tls_used if connection is not None else "",
            seconds,
            str(result.reply),
        )
    )
