"""The files that a configuration names, as those who read them want them; and whether all of them can be used, tried without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from relaycluster.config import Config
from relaycluster.interfaces import FileTrouble
from relaycluster.net.certificate_files import CertificateFiles
from relaycluster.net.server_tls import ServerTLS
from relaycluster.node import users_file
from relaycluster.node.aliases import Aliases
from relaycluster.node.signing import DKIMKeyFile, Signer


def default_certificate(config: Config) -> CertificateFiles | None:
    """The certificate for clients that name no host; None when no TLS is configured."""
    tls = config.tls
    return CertificateFiles((), tls.certificate, tls.key) if tls.certificate else None


def sni_certificates(config: Config) -> tuple[CertificateFiles, ...]:
    """The certificates for names, in the order of the file."""
    return tuple(CertificateFiles(sni.names, sni.certificate, sni.key) for sni in config.tls.sni)


def certificate_paths(config: Config) -> tuple[str, ...]:
    """All files that `ServerTLS.load` reads, each once."""
    default = default_certificate(config)
    files = ([default] if default is not None else []) + list(sni_certificates(config))
    return tuple(dict.fromkeys(path for each in files for path in (each.certificate, each.key)))


def dkim_keys(config: Config) -> tuple[DKIMKeyFile, ...]:
    """The keys that sign, in the order of the file."""
    return tuple(DKIMKeyFile(key.domain, key.selector, key.key_file, key.fallback) for key in config.dkim)


def dkim_paths(config: Config) -> tuple[str, ...]:
    """All files that `Signer.load` reads, each once."""
    return tuple(dict.fromkeys(key.key_file for key in config.dkim))


def troubles(config: Config, epoch_seconds: Callable[[], float], *, also_expired: bool = False) -> list[str]:
    """What is wrong with the files that a right configuration names, "FILE:LINE: what is wrong; the fix" in each line. They are read as
    a node reads them, and forgotten. `also_expired` as for `ServerTLS.load`."""
    return [
        str(trouble) for trouble in map(_tried, _readings(config, epoch_seconds, also_expired)) if trouble is not None
    ]


def _readings(config: Config, epoch_seconds: Callable[[], float], also_expired: bool) -> Iterator[Callable[[], object]]:
    default = default_certificate(config)
    if default is not None:
        tls = ServerTLS(config.tls.minimum, epoch_seconds)
        yield lambda: tls.load(default, sni_certificates(config), also_expired=also_expired)
    yield lambda: Signer().load(dkim_keys(config))
    if config.access.users_file:
        yield lambda: users_file.read(config.access.users_file)
    yield lambda: Aliases(config.node.hostname).load(config.access.aliases_file)


def _tried(read: Callable[[], object]) -> FileTrouble | None:
    try:
        read()
    except FileTrouble as trouble:
        return trouble
    return None
