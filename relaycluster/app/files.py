"""The files that the configuration names, as what they say: certificates, DKIM keys, users, aliases; read again when they change."""

from __future__ import annotations

import secrets
import time
from typing import Any

from twisted.python.threadpool import ThreadPool

from relaycluster import events
from relaycluster.config import Config
from relaycluster.events import EventLog
from relaycluster.mail.trace import date_time
from relaycluster.metrics import Metrics, SigningResult
from relaycluster.net.server_tls import ServerTLS
from relaycluster.node import named_files
from relaycluster.node.accounts import Accounts
from relaycluster.node.aliases import Aliases
from relaycluster.node.signing import Signer
from relaycluster.node.watch import FileWatch

PASSWORD_THREADS = 2
"""Checks of passwords at once: each takes a core for tens of milliseconds, and 19 MiB."""


class Files:
    """What all of them say now. `tls` is None while no certificate is configured. The keys are for every node, since notices are
    signed where they are made; the rest is for edges."""

    def __init__(self, reactor: Any, config: Config, metrics: Metrics, log: EventLog) -> None:
        self._metrics = metrics
        self._log = log
        self._is_edge = "edge" in config.node.roles
        self._threads = ThreadPool(minthreads=0, maxthreads=PASSWORD_THREADS, name="passwords")
        self._watch = FileWatch(reactor, metrics, log)
        self.signer = Signer(self._signed)
        self.accounts = Accounts(reactor, reactor, self._threads, secrets.token_bytes(32))
        self.aliases = Aliases(config.node.hostname)
        self._certificates = ServerTLS(config.tls.minimum, time.time)
        self.tls = self._certificates if self._is_edge and config.tls.certificate else None

    def use(self, config: Config) -> None:
        """Read the files that this configuration names, and watch them from now on. Raises `FileTrouble` or `OSError`; what was read
        before the one that can not be used holds then. A reload therefore tries them all first (`named_files.troubles`)."""
        watch, access = self._watch.watch, config.access
        if self.tls is not None:
            watch("certificate", named_files.certificate_paths(config), lambda: self._load_certificates(config))
        watch("dkim", named_files.dkim_paths(config), lambda: self.signer.load(named_files.dkim_keys(config)))
        if not self._is_edge:
            return
        aliases = [access.aliases_file] if access.aliases_file else []
        watch("aliases", aliases, lambda: self.aliases.load(access.aliases_file))
        if access.users_file:
            watch("users", [access.users_file], lambda: self.accounts.load(access.users_file))
        else:
            self._watch.forget("users")
            self.accounts.clear()

    def start(self) -> None:
        """Begin to look for changes, and to check passwords."""
        self._threads.start()
        self._watch.start()

    def look_now(self) -> None:
        """SIGHUP: what has changed is complete."""
        self._watch.look_now()

    def stop(self) -> None:
        """No timer and no thread is left behind."""
        self._watch.stop()
        if self._threads.started:
            self._threads.stop()

    def _load_certificates(self, config: Config) -> None:
        default = named_files.default_certificate(config)
        assert default is not None, "a change that begins or ends TLS needs a restart"
        # An expired certificate does not take the place of a good one; but a node starts with it rather than not at all.
        shown, now = self._certificates.expiry(), time.time()
        has_good = bool(shown) and all(until > now for _, until in shown)
        self._certificates.load(default, named_files.sni_certificates(config), also_expired=not has_good)
        shown = self._certificates.expiry()
        self._metrics.certificates(shown)
        for name, until in shown:
            if until <= now:
                self._log.emit(events.Warning(f"the certificate of {name} expired on {date_time(until)}", "tls"))

    def _signed(self, result: SigningResult) -> None:
        self._metrics.dkim_signatures[result].inc()
