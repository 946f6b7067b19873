"""The metrics: the contract's names, labels that nobody outside can grow, numbers that Prometheus reads back."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from relaycluster.mail.reply import Reply
from relaycluster.metrics import FAMILIES, TOP_DOMAINS, Metrics, Spread, reject_reason
from relaycluster.policy.bounce_class import BounceClass

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

CONTRACT = {
    "smtp_connections_total": {"listener"},
    "smtp_sessions": set(),
    "smtp_commands_total": {"verb", "code"},
    "smtp_messages_total": {"result"},
    "smtp_rejects_total": {"reason"},
    "smtp_tls_sessions_total": {"version"},
    "smtp_tls_failures_total": set(),
    "tls_certificate_expiry_timestamp_seconds": {"name"},
    "smtp_auth_total": {"result"},
    "smtp_proxy_total": {"result"},
    "smtp_stress": set(),
    "dkim_signatures_total": {"result"},
    "smtp_accept_seconds": set(),
    "queue_items": {"state"},
    "queue_bytes": set(),
    "queue_oldest_seconds": set(),
    "queue_domain_items": {"domain"},
    "delivery_attempts_total": {"result", "code_class"},
    "delivery_seconds": set(),
    "delivery_queue_seconds": set(),
    "delivery_connections": {"state"},
    "bounces_total": {"class"},
    "throttled_total": {"reason"},
    "ownership_lost_total": set(),
    "possible_duplicates_total": set(),
    "redis_seconds": {"operation"},
    "redis_errors_total": {"kind"},
    "ring_nodes": set(),
    "ring_partitions_owned": set(),
    "node_load_ratio": set(),
    "config_reloads_total": {"result"},
    "file_reloads_total": {"file", "result"},
    "reactor_lag_seconds": set(),
    "build_info": {"version", "python"},
}


def make() -> tuple[Metrics, CollectorRegistry]:
    registry = CollectorRegistry()
    return Metrics(registry, version="1.2.3", listeners=["127.0.0.1:25"]), registry


def scrape(registry: CollectorRegistry) -> Samples:
    text = generate_latest(registry).decode()
    return {
        (sample.name.removeprefix("relaycluster_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_the_names_of_the_contract() -> None:
    """Dashboards and alerts hold on to these names and labels."""
    declared = {family.exposed_name: {label.name for label in family.labels} for family in FAMILIES}
    assert declared == {f"relaycluster_{name}": labels for name, labels in CONTRACT.items()}


def test_every_family_is_shown() -> None:
    """Each declared family is in a scrape from the start, with its meaning."""
    _, registry = make()
    text = generate_latest(registry).decode()
    for family in FAMILIES:
        assert f"# HELP {family.exposed_name} {family.doc}" in text


def test_what_is_counted_is_shown() -> None:
    """Every way to count ends in its series."""
    metrics, registry = make()
    metrics.smtp_connections["127.0.0.1:25"].inc()
    metrics.smtp_sessions.inc(3)
    metrics.smtp_sessions.dec()
    metrics.smtp_command("MAIL", 250)
    metrics.smtp_command("MAIL", 250)
    metrics.smtp_messages["queued"].inc()
    metrics.smtp_reject(Reply.of(550, "5.7.1", "Relaying denied"))
    metrics.smtp_accept_seconds.observe(0.003)
    metrics.delivery_attempt("delivered", 250)
    metrics.delivery_attempt("deferred", 0)
    metrics.delivery_connections["busy"].set(4)
    metrics.bounces[BounceClass.BAD_MAILBOX].inc()
    metrics.throttled["rate"].inc()
    metrics.redis_seconds("claim").observe(0.001)
    metrics.redis_errors["full"].inc()
    metrics.config_reloads["applied"].inc()
    metrics.file_reloads["users", "refused"].inc()
    metrics.smtp_tls_sessions["TLSv1.3"].inc()
    metrics.smtp_tls_failures.inc()
    metrics.smtp_auth["backoff"].inc()
    metrics.smtp_proxy["untrusted"].inc()
    metrics.smtp_stress.set(1)
    metrics.dkim_signatures["no_key"].inc()
    samples = scrape(registry)
    assert value(samples, "smtp_connections_total", listener="127.0.0.1:25") == 1
    assert value(samples, "smtp_sessions") == 2
    assert value(samples, "smtp_commands_total", verb="MAIL", code="250") == 2
    assert value(samples, "smtp_messages_total", result="queued") == 1
    assert value(samples, "smtp_messages_total", result="aborted") == 0
    assert value(samples, "smtp_rejects_total", reason="relay") == 1
    assert value(samples, "smtp_accept_seconds_bucket", le="0.0025") == 0
    assert value(samples, "smtp_accept_seconds_bucket", le="0.005") == 1
    assert value(samples, "smtp_accept_seconds_count") == 1
    assert value(samples, "delivery_attempts_total", result="delivered", code_class="2xx") == 1
    assert value(samples, "delivery_attempts_total", result="deferred", code_class="none") == 1
    assert value(samples, "delivery_connections", state="busy") == 4
    assert value(samples, "bounces_total", **{"class": "bad-mailbox"}) == 1
    assert value(samples, "throttled_total", reason="rate") == 1
    assert value(samples, "redis_seconds_count", operation="claim") == 1
    assert value(samples, "redis_errors_total", kind="full") == 1
    assert value(samples, "config_reloads_total", result="applied") == 1
    assert value(samples, "file_reloads_total", file="users", result="refused") == 1
    assert value(samples, "smtp_tls_sessions_total", version="TLSv1.3") == 1
    assert value(samples, "smtp_tls_failures_total") == 1
    assert value(samples, "smtp_auth_total", result="backoff") == 1
    assert value(samples, "smtp_proxy_total", result="untrusted") == 1
    assert value(samples, "smtp_stress") == 1
    assert value(samples, "dkim_signatures_total", result="no_key") == 1
    assert [labels for name, labels in samples if name == "build_info" and ("version", "1.2.3") in labels]


@given(st.lists(st.tuples(st.text(), st.integers(-10, 10**6)), max_size=200))
def test_no_client_makes_a_series(commands: list[tuple[str, int]]) -> None:
    """Verbs and codes from outside end in one series for each of our own reply codes, and the sum is right."""
    metrics, registry = make()
    for verb, code in commands:
        metrics.smtp_command(verb, code)
    shown = {labels: count for (name, labels), count in scrape(registry).items() if name == "smtp_commands_total"}
    assert sum(shown.values()) == len(commands)
    verbs = {value for labels in shown for name, value in labels if name == "verb"}
    assert verbs <= _verbs()
    assert all(200 <= int(value) <= 599 for labels in shown for name, value in labels if name == "code")


def _verbs() -> set[str]:
    return {name for family in FAMILIES if family.name == "smtp_commands" for name in family.labels[0].values}


def test_an_unknown_listener_is_a_bug_not_a_series() -> None:
    """Only configured listeners are counted."""
    metrics, _ = make()
    with pytest.raises(KeyError):
        metrics.smtp_connections["192.0.2.1:25"].inc()


def test_an_unknown_operation_is_other() -> None:
    """A new Redis operation cannot break the path of a message."""
    metrics, _ = make()
    assert metrics.redis_seconds("brew") is metrics.redis_seconds("other")
    assert metrics.redis_seconds("claim") is not metrics.redis_seconds("other")


@given(
    st.dictionaries(st.text("abc.", min_size=1, max_size=6), st.integers(1, 1000), max_size=60), st.integers(0, 10**6)
)
def test_domains_are_bounded_and_add_up(backlogs: dict[str, int], more: int) -> None:
    """At most the largest backlogs and `_other` are shown, however many domains there are, and they sum up to all items."""
    metrics, registry = make()
    ready = sum(backlogs.values()) + more
    metrics.queue_snapshot(
        scheduled=0, ready=ready, leased=0, held=0, size_bytes=7, oldest_seconds=1.5, domains=backlogs.items()
    )
    samples = scrape(registry)
    shown = {dict(labels)["domain"]: items for (name, labels), items in samples.items() if name == "queue_domain_items"}
    assert sum(shown.values()) == ready
    assert len(shown) == min(len(backlogs), TOP_DOMAINS) + 1
    hidden = [items for domain, items in backlogs.items() if domain not in shown]
    assert all(items >= max(hidden, default=0) for domain, items in shown.items() if domain != "_other")
    assert value(samples, "queue_items", state="ready") == ready
    assert value(samples, "queue_bytes") == 7
    assert value(samples, "queue_oldest_seconds") == 1.5


def test_certificates_are_those_in_use() -> None:
    """A series for each certificate, gone with it; of two with one name the one that ends first is what matters."""
    metrics, registry = make()
    metrics.certificates([("mx.example.net", 2e9), ("example.org", 3e9), ("mx.example.net", 1.9e9)])
    assert _certificates(registry) == {"mx.example.net": 1.9e9, "example.org": 3e9}
    metrics.certificates([("example.org", 4e9)])
    assert _certificates(registry) == {"example.org": 4e9}


def _certificates(registry: CollectorRegistry) -> dict[str, float]:
    family = "tls_certificate_expiry_timestamp_seconds"
    return {dict(labels)["name"]: end for (name, labels), end in scrape(registry).items() if name == family}


@given(st.lists(st.floats(0, 100), max_size=50))
def test_buckets(observed: list[float]) -> None:
    """A duration counts in the first bucket whose bound is not below it."""
    bounds = (0.1, 1.0, 10.0)
    spread = Spread(bounds)
    for seconds in observed:
        spread.observe(seconds)
    expected = [sum(1 for seconds in observed if bisect_left(bounds, seconds) == place) for place in range(4)]
    assert spread.counts == expected
    assert all(sum(spread.counts[: i + 1]) == sum(s <= bound for s in observed) for i, bound in enumerate(bounds))


def test_two_of_them_do_not_share_a_registry() -> None:
    """A second set of the same names is refused, not mixed in."""
    _, registry = make()
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(registry, version="1")


@pytest.mark.parametrize(
    ("code", "enhanced", "reason"),
    [
        (550, "5.7.1", "relay"), (452, "4.3.1", "queue_full"), (451, "4.3.0", "unavailable"), (552, "5.3.4", "size"),
        (452, "4.5.3", "recipients"), (503, "5.5.1", "sequence"), (501, "5.5.4", "syntax"), (554, "5.6.0", "content"),
        (421, "4.7.0", "limits"), (421, "4.4.2", "timeout"), (421, "4.3.2", "draining"), (501, "5.1.3", "address"),
        (535, "5.7.8", "authentication"), (550, "5.7.26", "policy"), (554, "", "other"), (421, "", "unavailable"),
        (550, "5.9.9", "other"), (530, "5.7.0", "authentication"), (538, "5.7.11", "authentication"),
        (454, "4.7.0", "authentication"), (450, "4.7.1", "limits"), (553, "5.7.1", "policy"), (554, "5.4.6", "loop"),
        (554, "5.7.1", "relay"),
    ],
)  # fmt: skip
def test_reasons(code: int, enhanced: str, reason: str) -> None:
    """The reason follows from our own reply's codes."""
    assert reject_reason(code, enhanced) == reason
