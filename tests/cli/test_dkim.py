"""`relaycluster dkim keygen` and `check`: a key, its record, and what is said of a record that does not fit, over real DNS packets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dnslib import QTYPE, RR, TXT

from relaycluster.cli.main import main
from relaycluster.mail.dkim_record import PublicKey, strings
from relaycluster.node.dkim_keys import new_key, read_key
from tests.support.dns import FakeDNS, Zone


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ("dkim", *arguments), env={"RELAYCLUSTER_NODE__HOSTNAME": "relay.example.net"})


def keygen(file: Path, *arguments: str) -> Result:
    return run("keygen", "--domain", "example.net", "--selector", "s1", "--out", str(file), *arguments)


NAME = "s1._domainkey.example.net"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RSA key that `keygen` made."""
    file = tmp_path_factory.mktemp("keys") / "s1.pem"
    assert keygen(file).exit_code == 0
    return file


@pytest.fixture(scope="module")
def public(pem: Path) -> PublicKey:
    """Its public half."""
    return read_key(str(pem)).public


Publish = Callable[..., None]


@pytest.fixture
def dns() -> Iterator[FakeDNS]:
    """A DNS server; `publish` fills it."""
    with FakeDNS() as server:
        yield server


@pytest.fixture
def publish(dns: FakeDNS) -> Publish:
    """From the next question on, answer with these TXT records (each a list of strings), or with these misfortunes."""

    def change(records: dict[str, list[list[str]]], lines: str = "") -> None:
        zone = Zone(lines)
        for name, texts in records.items():
            zone.records[name] = [RR(name, QTYPE.TXT, ttl=60, rdata=TXT([*map(str.encode, text)])) for text in texts]
        dns._zone = zone

    return change


def joined(zone_line: str) -> str:
    """The text of a TXT record in a zone file: what stands in quotes."""
    return "".join(zone_line.split('"')[1::2])


@pytest.mark.parametrize(("kind", "bits"), [("rsa", 2048), ("rsa", 3072), ("ed25519", 256)])
def test_keygen(tmp_path: Path, kind: str, bits: int) -> None:
    """A private key for its owner alone, and on stdout the record for it, ready for a zone file, in strings that DNS can hold."""
    file = tmp_path / "s1.pem"
    result = keygen(file, "--type", kind, *(["--bits", str(bits)] if kind == "rsa" else []))
    assert result.exit_code == 0
    key = read_key(str(file))
    assert (key.public.type, key.bits) == (kind, bits)
    assert file.stat().st_mode & 0o777 == 0o600
    assert result.stdout.startswith(f"{NAME}. IN TXT ")
    assert joined(result.stdout) == key.public.record
    assert max(len(part) for part in result.stdout.split('"')[1::2]) <= 255
    assert f'key_file = "{file}"' in result.stderr


def test_keygen_json(tmp_path: Path) -> None:
    """The same as one object."""
    result = keygen(tmp_path / "k", "--json", "--type", "ed25519")
    found = json.loads(result.stdout)
    assert (found["name"], found["file"]) == (NAME, str(tmp_path / "k"))
    assert "".join(found["strings"]) == read_key(str(tmp_path / "k")).public.record


def test_keygen_never_overwrites(pem: Path) -> None:
    """A key that is in use stays: its public half stays in caches for days."""
    before = pem.read_bytes()
    result = keygen(pem)
    assert result.exit_code == 1
    assert "exists already; choose another name" in result.stderr
    assert pem.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--domain", "no domain", "--selector", "s1"], "'no domain' is not a domain name"),
        (["--domain", "x.test", "--selector", "s_1;"], "'s_1;' is not a selector"),
        (["--domain", "x.test", "--selector", "s1", "--bits", "1024"], "'1024' is not one of"),
    ],
)
def test_keygen_refuses(tmp_path: Path, arguments: list[str], said: str) -> None:
    """What no record could be for is told before a file is written."""
    result = run("keygen", *arguments, "--out", str(tmp_path / "k"))
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "k").exists()


def test_keygen_into_nowhere(tmp_path: Path) -> None:
    """A directory that is not there is an error with a reason."""
    result = keygen(tmp_path / "none" / "k")
    assert result.exit_code == 1
    assert "can not be written: No such file or directory" in result.stderr


def test_idn(tmp_path: Path) -> None:
    """A domain in Unicode is published as A-labels (RFC 6376 3.5)."""
    result = run(
        "keygen", "--domain", "Bücher.example", "--selector", "s1", "--type", "ed25519", "--out", str(tmp_path / "k")
    )
    assert result.stdout.startswith("s1._domainkey.xn--bcher-kva.example. IN TXT ")


def check_key(dns: FakeDNS, pem: Path, *arguments: str) -> Result:
    return run("check", "--server", dns.address, "--key", str(pem), "--selector", "s1", "example.net", *arguments)


def test_published_as_printed(dns: FakeDNS, publish: Publish, pem: Path, public: PublicKey) -> None:
    """Exit 0 for the record that keygen printed, in one string or several; also behind a CNAME."""
    for text in (strings(public.record), [public.record[:100], public.record[100:200], public.record[200:]]):
        publish({NAME: [text]})
        result = check_key(dns, pem)
        assert (result.exit_code, result.stdout) == (0, f"ok      {NAME} (rsa 2048, {pem})\n")
    publish({"keys.elsewhere.test": [strings(public.record)]}, f"{NAME} CNAME keys.elsewhere.test")
    assert check_key(dns, pem).exit_code == 0


def test_wrong_records(dns: FakeDNS, publish: Publish, pem: Path, public: PublicKey) -> None:
    """Exit 1, what differs, and the record to publish instead."""
    said = {
        "p= breaks off after 200 of 392 characters": {NAME: [[public.record[: 200 + len("v=DKIM1; k=rsa; p=")]]]},
        "2 TXT records where only one may be": {NAME: [strings(public.record), ["v=spf1 -all"]]},
    }
    for text, records in said.items():
        publish(records)
        result = check_key(dns, pem)
        assert result.exit_code == 1
        assert text in result.stdout
        assert joined(result.stdout.partition("publish:")[2]) == public.record
    publish({})
    assert "the name does not exist in DNS" in check_key(dns, pem).stdout
    publish({}, f"{NAME} A 127.0.0.1")
    assert "no TXT record" in check_key(dns, pem).stdout


def test_dns_trouble(dns: FakeDNS, publish: Publish, pem: Path) -> None:
    """When DNS does not answer, that is said, and nothing about the record."""
    publish({}, f"{NAME} SERVFAIL")
    result = check_key(dns, pem)
    assert result.exit_code == 1
    assert "DNS gave no answer that can be used" in result.stdout
    assert "publish" not in result.stdout


def test_warning(dns: FakeDNS, publish: Publish, pem: Path, public: PublicKey) -> None:
    """What still verifies is exit 0, with a warning."""
    publish({NAME: [strings(public.record.replace("k=rsa", "k=rsa; t=y"))]})
    result = check_key(dns, pem)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"warning {NAME}")
    assert "t=y" in result.stdout


def test_short_key(dns: FakeDNS, publish: Publish, tmp_path: Path) -> None:
    """1024 bits verify, with a warning (RFC 8301 3.2)."""
    file = tmp_path / "short.pem"
    file.write_bytes(new_key("rsa", 1024))
    publish({NAME: [[read_key(str(file)).public.record]]})
    result = check_key(dns, file)
    assert result.exit_code == 0
    assert "1024 bits are few" in result.stdout


def config(directory: Path, dns: FakeDNS, *keys: tuple[str, str, bool]) -> str:
    tables = "".join(
        f'[[dkim]]\ndomain = "{domain}"\nselector = "s1"\nkey_file = "{file}"\nfallback = {str(fallback).lower()}\n'
        for domain, file, fallback in keys
    )
    path = directory / "relay.toml"
    path.write_text(f'[dns]\nservers = ["{dns.address}"]\n{tables}')
    return str(path)


def test_configured_keys(dns: FakeDNS, publish: Publish, pem: Path, public: PublicKey, tmp_path: Path) -> None:
    """All keys of the configuration, with the resolver that it names; one wrong key does not hide the others."""
    empty = tmp_path / "empty.pem"
    empty.touch()
    path = config(tmp_path, dns, ("example.net", str(pem), False), ("example.org", str(empty), False))
    publish({NAME: [strings(public.record)]})
    result = run("check", "--config", path, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (1, False)
    assert [(key["name"], key["ok"]) for key in found["keys"]] == [(NAME, True), ("s1._domainkey.example.org", False)]
    assert found["keys"][1]["findings"] == [
        f"{empty}: holds no private key: there is no line -----BEGIN PRIVATE KEY-----"
    ]


@pytest.mark.parametrize(
    ("domain", "name", "note"),
    [
        ("example.net", NAME, ""),
        ("news.example.net", NAME, "aligned for DMARC unless its record says adkim=s"),
        ("example.com", "s1._domainkey.fallback.test", "not aligned for DMARC"),
    ],
)
def test_a_domain(
    dns: FakeDNS, publish: Publish, pem: Path, public: PublicKey, tmp_path: Path, domain: str, name: str, note: str
) -> None:
    """The keys that sign for authors of a domain, and what that is worth for DMARC (RFC 7489 3.1.1)."""
    path = config(tmp_path, dns, ("example.net", str(pem), False), ("fallback.test", str(pem), True))
    publish({name: [strings(public.record)]})
    found = json.loads(run("check", "--config", path, "--json", domain).stdout)
    assert (found["ok"], [key["name"] for key in found["keys"]]) == (True, [name])
    assert note in found["note"]
    assert bool(note) == bool(found["note"])


def test_nobody_signs(dns: FakeDNS, pem: Path, tmp_path: Path) -> None:
    """Exit 1 when no key signs for the domain, or when there is none at all."""
    path = config(tmp_path, dns, ("example.net", str(pem), False))
    result = run("check", "--config", path, "example.com")
    assert (result.exit_code, result.stdout) == (1, "no key signs mail of example.com\n")
    result = run("check")
    assert (result.exit_code, result.stdout) == (1, "no key is configured ([[dkim]])\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--key", "k", "example.net"],
        ["--selector", "s1"],
        ["--key", "k", "--selector", "s1"],
        ["--server", "name.test"],
    ],
)
def test_wrong_questions(arguments: list[str]) -> None:
    """Exit 2 for a question that can not be answered."""
    assert run("check", *arguments).exit_code == 2
