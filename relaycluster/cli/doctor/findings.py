"""What `relaycluster doctor` has to say: findings, each about one thing of one part."""

from __future__ import annotations

from enum import Enum

from attrs import frozen


class Verdict(Enum):
    """What became of a check. Only `FAILED` makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "not tested"


@frozen
class Finding:
    """One check's result. `subject` is the part that was looked at: a listener's address, "redis", "http"."""

    subject: str
    check: str
    verdict: Verdict
    detail: str


def ok(subject: str, check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(subject, check, Verdict.OK, detail)


def warning(subject: str, check: str, detail: str) -> Finding:
    """Somebody should look at it."""
    return Finding(subject, check, Verdict.WARNING, detail)


def failed(subject: str, check: str, detail: str) -> Finding:
    """It must not stay so."""
    return Finding(subject, check, Verdict.FAILED, detail)


def skipped(subject: str, check: str, detail: str) -> Finding:
    """It could not be tested from here; the detail says why, and what would do."""
    return Finding(subject, check, Verdict.SKIPPED, detail)
