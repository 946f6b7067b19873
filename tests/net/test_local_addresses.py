"""Local addresses: what the system says about them."""

from __future__ import annotations

import pytest

from relaycluster.net.local_addresses import can_bind, is_local

STRANGERS = ["240.0.0.2", "100::2", "fe80::1", "not an address"]


def test_loopback_is_local() -> None:
    """It is this machine's on every machine."""
    assert is_local("127.0.0.1")


@pytest.mark.skipif(not can_bind("::1"), reason="no IPv6 here")
def test_ipv6() -> None:
    """The same of the other family."""
    assert is_local("::1")


@pytest.mark.parametrize("address", STRANGERS)
def test_strangers(address: str) -> None:
    """What is nobody's, and what is no complete address, is not this machine's."""
    assert not is_local(address)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_a_system_where_any_address_can_be_bound(address: str) -> None:
    """Being able to bind (net.ipv4.ip_nonlocal_bind) then says nothing: no stranger is taken for ourselves."""
    assert is_local(address, lambda each: each == address)
    assert not is_local(address, lambda _: True)
