"""The files of a configuration: who reads what, and a trial that tells all that is wrong without a node."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from relaycluster.config import Config, load
from relaycluster.net.certificate_files import CertificateFiles
from relaycluster.node import named_files
from relaycluster.node.signing import DKIMKeyFile
from tests.net.certificates import Authority

NOW = 1e9
TEXT = """
[tls]
certificate = "chain"
key = "chain.key"
[[tls.sni]]
names = ["mx.example.org"]
certificate = "other"
key = "other.key"
[access]
users_file = "users"
aliases_file = "aliases"
[[dkim]]
domain = "example.net"
selector = "s1"
key_file = "dkim"
fallback = true
[[dkim]]
domain = "example.org"
selector = "s1"
key_file = "dkim"
[[listener]]
address = "127.0.0.1:587"
tls = "starttls"
"""


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """Every file of the configuration, as it should be."""
    authority = Authority()
    chain, other = authority.issue("relay.example.net"), authority.issue("mx.example.org")
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {
        "chain": chain.certificate,
        "chain.key": chain.key,
        "other": other.certificate,
        "other.key": other.key,
        "users": b"",
        "aliases": b"sales: alice@example.com\n",
        "dkim": key,
    }


def read(directory: Path, contents: dict[str, bytes], **changed: bytes) -> Config:
    for name, data in {**contents, **{name.replace("_", "."): data for name, data in changed.items()}}.items():
        (directory / name).write_bytes(data)
    file = directory / "relay.toml"
    file.write_text(TEXT)
    return load(file, {}, host_name=lambda: "relay.example.net")


def test_who_reads_what(tmp_path: Path, contents: dict[str, bytes]) -> None:
    """The entries of the configuration, in its order, and each path once."""
    config = read(tmp_path, contents)
    at = {name: str(tmp_path / name) for name in contents}
    assert named_files.default_certificate(config) == CertificateFiles((), at["chain"], at["chain.key"])
    assert named_files.sni_certificates(config) == (
        CertificateFiles(("mx.example.org",), at["other"], at["other.key"]),
    )
    assert named_files.certificate_paths(config) == (at["chain"], at["chain.key"], at["other"], at["other.key"])
    assert named_files.dkim_keys(config) == (
        DKIMKeyFile("example.net", "s1", at["dkim"], True),
        DKIMKeyFile("example.org", "s1", at["dkim"], False),
    )
    assert named_files.dkim_paths(config) == (at["dkim"],)


def test_without_any(tmp_path: Path) -> None:
    """A configuration without files has no trouble with them."""
    file = tmp_path / "relay.toml"
    file.write_text('[node]\nid = "a"')
    config = load(file, {})
    assert named_files.default_certificate(config) is None
    assert named_files.certificate_paths(config) == named_files.dkim_paths(config) == ()
    assert named_files.troubles(config, lambda: NOW) == []


def test_all_that_is_wrong_is_told(tmp_path: Path, contents: dict[str, bytes]) -> None:
    """One line for each subject: file, line where there is one, reason. What is right is not told."""
    assert named_files.troubles(read(tmp_path, contents), time.time) == []
    wrong = read(
        tmp_path, contents, chain_key=contents["other.key"], users=b"\nx", aliases=b"# a\n\na b c\n", dkim=b"?"
    )
    lines = named_files.troubles(wrong, time.time)
    assert [line.partition(": ")[0] for line in lines] == [
        str(tmp_path / "chain.key"),
        str(tmp_path / "dkim"),
        f"{tmp_path / 'users'}:2",
        f"{tmp_path / 'aliases'}:3",
    ]
    assert all("\n" not in line for line in lines)
