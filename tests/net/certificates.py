"""Certificates for tests, made on the spot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@frozen
class Issued:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """A root that issues certificates; each instance is another root."""

    def __init__(self, name: str = "Test Root") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        root = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        self.certificate = root.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _builder(
        self,
        name: x509.Name,
        key: PrivateKey,
        starts: timedelta = timedelta(days=-1),
        ends: timedelta = timedelta(days=1),
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
        )

    def issue(
        self,
        *names: str,
        starts: timedelta = timedelta(days=-1),
        ends: timedelta = timedelta(days=1),
        key: PrivateKey | None = None,
    ) -> Issued:
        """A certificate for host names and IP addresses, valid from `starts` to `ends` from now, for a new key or for `key`."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test Host")])
        leaf = self._builder(subject, key, starts, ends)
        if alternatives:
            leaf = leaf.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return Issued(
            leaf.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
