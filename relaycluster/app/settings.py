"""From the configuration to the settings of each floor."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from relaycluster.config import Config
from relaycluster.net.inbound_sessions import SessionLimits
from relaycluster.node.access import Access
from relaycluster.node.settle import RetrySettings
from relaycluster.smtp.server_settings import ServerSettings


def tls_for(host: str, ca_file: str) -> Any:
    if not ca_file:
        return optionsForClientTLS(host)
    text = Path(ca_file).read_bytes()
    end = b"-----END CERTIFICATE-----\n"
    blocks = [block + end for block in text.split(end)[:-1]]
    return optionsForClientTLS(
        host, trustRoot=trustRootFromCertificates([Certificate.loadPEM(block) for block in blocks])
    )


def own_listeners(config: Config) -> Callable[[str, int], bool]:
    """Whether a connection to an address and port would come to one of our own listeners."""
    own = {(str(listener.address.host), listener.address.port) for listener in config.listener}
    anywhere = {port for host, port in own if ip_address(host).is_unspecified}

    def is_own(address: str, port: int) -> bool:
        if (address, port) in own:
            return True
        there = ip_address(address)
        # Unspecified means this machine; what listens everywhere listens on loopback, too.
        return (there.is_unspecified and any(port == each for _, each in own)) or (
            there.is_loopback and port in anywhere
        )

    return is_own


def access(config: Config) -> Access:
    networks = {str(listener.address): config.access.networks_for(listener) for listener in config.listener}
    return Access.of(networks, config.access.relay_domains)


def retry(config: Config) -> RetrySettings:
    delivery = config.delivery
    return RetrySettings(tuple(delivery.retry), delivery.lifetime, delivery.delay_notice)


def server_settings(config: Config) -> ServerSettings:
    return ServerSettings(
        hostname=config.node.hostname,
        message_size_bytes=config.limits.message_size,
        recipients=config.limits.recipients,
        errors=config.limits.errors,
    )


def session_limits(config: Config) -> SessionLimits:
    limits = config.limits
    return SessionLimits(
        connections=limits.connections,
        connections_per_client=limits.connections_per_client,
        command_timeout_seconds=limits.command_timeout,
        data_timeout_seconds=limits.data_timeout,
        transaction_seconds=limits.transaction_time,
        minimum_data_rate=limits.minimum_data_rate,
    )
