"""From the configuration to the settings of each floor; and what of it can change while the node runs.

The files that it names are `node/named_files.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from relaycluster.config import Config, Listener
from relaycluster.net.inbound_sessions import SessionLimits
from relaycluster.node.access import Access
from relaycluster.node.edge import EdgeSettings
from relaycluster.node.settle import RetrySettings
from relaycluster.smtp.server_settings import BareNewline, ServerSettings

FIXED_SECTIONS: Final = ("node", "redis", "dns", "http", "log")
"""What a node reads once, when it starts."""


def restart_needed(old: Config, new: Config) -> list[str]:
    """Why `new` can not take the place of `old` in a running node, "key: what to do" in each line; none when it can.

    Sockets stay as they are: their addresses, and what is spoken on them before SMTP. Everything else of a listener, of `tls`,
    `access`, `limits`, `delivery`, `destination` and `dkim` can change.
    """
    return list(_fixed(old, new))


def _fixed(old: Config, new: Config) -> Iterator[str]:
    for name in FIXED_SECTIONS:
        if getattr(old, name) != getattr(new, name):
            yield f"{name}: a change needs a restart"
    if old.tls.minimum != new.tls.minimum:
        yield "tls.minimum: a change needs a restart"
    if bool(old.tls.certificate) != bool(new.tls.certificate):
        yield "tls.certificate: to begin or end with TLS needs a restart"
    before = {listener.address: listener for listener in old.listener}
    if before.keys() != {listener.address for listener in new.listener}:
        yield "listener: sockets are opened and closed by a restart"
        return
    for number, listener in enumerate(new.listener):
        was = before[listener.address]
        if was.mode != listener.mode:
            yield f"listener[{number}].mode: a change needs a restart"
        if (was.tls == "implicit") != (listener.tls == "implicit"):
            yield f'listener[{number}].tls: to begin or end with "implicit" needs a restart'
        if bool(was.proxy_protocol_from) != bool(listener.proxy_protocol_from):
            yield f"listener[{number}].proxy_protocol_from: to begin or end with the PROXY protocol needs a restart"


# Redis and ourselves


def tls_for(host: str, ca_file: str) -> Any:
    """The TLS options for a connection to Redis."""
    if not ca_file:
        return optionsForClientTLS(host)
    text = Path(ca_file).read_bytes()
    end = b"-----END CERTIFICATE-----\n"
    blocks = [block + end for block in text.split(end)[:-1]]
    return optionsForClientTLS(
        host, trustRoot=trustRootFromCertificates([Certificate.loadPEM(block) for block in blocks])
    )


def own_listeners(config: Config, is_local: Callable[[str], bool]) -> Callable[[str, int], bool]:
    """Whether a connection to an address and port would come to one of our own listeners. `is_local` tells whether an address is this
    machine's."""
    opened = config.listener if "edge" in config.node.roles else ()
    own = {(str(listener.address.host), listener.address.port) for listener in opened}
    anywhere = {port for host, port in own if ip_address(host).is_unspecified}

    def is_own(address: str, port: int) -> bool:
        if (address, port) in own:
            return True
        there = ip_address(address)
        # Unspecified means this machine; what listens everywhere listens on each of its addresses.
        return (there.is_unspecified and any(port == each for _, each in own)) or (
            port in anywhere and (there.is_loopback or is_local(address))
        )

    return is_own


def retry(config: Config) -> RetrySettings:
    """When delivery is tried again, and for how long."""
    delivery = config.delivery
    return RetrySettings(tuple(delivery.retry), delivery.lifetime, delivery.delay_notice)


# The edge


def access(config: Config) -> Access:
    """Who may relay, by the name of the listener."""
    networks = {str(listener.address): config.access.networks_for(listener) for listener in config.listener}
    proxies = {str(listener.address): listener.proxy_protocol_from for listener in config.listener}
    return Access.of(networks, config.access.relay_domains, proxies)


def edge_settings(config: Config) -> EdgeSettings:
    """What the edge asks of messages, and which class they have."""
    limits = config.limits
    return EdgeSettings(
        hostname=config.node.hostname,
        classes={str(listener.address): listener.priority for listener in config.listener},
        header_size=limits.header_size,
        header_fields=limits.header_fields,
        messages_per_client=limits.messages_per_client,
    )


def server_settings(config: Config, listener: Listener) -> ServerSettings:
    """What the conversations on a listener are allowed and offer."""
    limits = config.limits
    return ServerSettings(
        hostname=config.node.hostname,
        message_size_bytes=limits.message_size,
        recipients=limits.recipients,
        errors=limits.errors,
        bare_newline=BareNewline(limits.bare_newline),
        starttls=listener.tls == "starttls",
        require_tls=listener.require_tls,
        auth=listener.mode == "submission" and bool(config.access.users_file),
        auth_without_tls=listener.auth_without_tls,
    )


def session_limits(config: Config) -> SessionLimits:
    """What sessions cost this process at most, on all listeners together."""
    limits = config.limits
    return SessionLimits(
        connections=limits.connections,
        connections_per_client=limits.connections_per_client,
        command_timeout_seconds=limits.command_timeout,
        data_timeout_seconds=limits.data_timeout,
        transaction_seconds=limits.transaction_time,
        minimum_data_rate=limits.minimum_data_rate,
        connection_rate_per_client=limits.connection_rate_per_client,
        # All slots in use is no beginning of stress: that many is for never.
        stress_at=limits.stress_at if limits.stress_at < 1 else math.inf,
    )
