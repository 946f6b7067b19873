"""`twistd relaycluster`: the options, and the service that they make."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

USAGE_ERROR = 2
START_ERROR = 1


class Options(usage.Options):
    """What can be said on the command line; everything else is in the configuration file."""

    synopsis = "[--config FILE] [--role edge,delivery] [--node-id NAME]"
    longdesc = "Runs one node of a relaycluster. Without --config: one node for this machine, with an embedded Redis."
    optParameters = [  # noqa: RUF012 (the name and form are twisted's)
        ["config", "c", None, "The configuration file (TOML)"],
        ["role", None, None, 'Overrides [node] roles: "edge", "delivery" or "edge,delivery"'],
        ["node-id", None, None, "Overrides [node] id"],
    ]

    def postOptions(self) -> None:
        """Twisted's own log lines become events: one stream, one form."""
        parent: Any = self.parent
        if parent is not None and not parent.get("logger") and not parent.get("logfile") and not parent.get("syslog"):
            parent["logger"] = "relaycluster.tap.observer"


def observer() -> Callable[[dict[str, Any]], None]:
    """Hands what Twisted logs to the node, once there is one."""

    def observe(event: dict[str, Any]) -> None:
        if _Log.observe is not None:
            _Log.observe(event)

    return observe


class _Log:
    """Where Twisted's log goes: it begins before there is a node."""

    observe: Callable[[dict[str, Any]], None] | None = None


def _start_failed(line: str) -> None:
    """One line that tells why, and an exit status that says so."""
    from twisted.internet import reactor  # noqa: TID251 (ending the process is this module's part)

    running: Any = reactor
    os.write(2, f"relaycluster: {line}\n".encode())
    running.addSystemEventTrigger("after", "shutdown", os._exit, START_ERROR)
    running.stop()


def makeService(options: Options) -> IService:
    """The node as a service. A wrong configuration ends the process with status 2, before any socket opens."""
    from relaycluster.app import make_node
    from relaycluster.config import ConfigError
    from relaycluster.events import TwistedTrouble

    overrides: dict[str, object] = {}
    if options["role"]:
        overrides["node.roles"] = [role.strip() for role in options["role"].split(",")]
    if options["node-id"]:
        overrides["node.id"] = options["node-id"]
    try:
        node = make_node(options["config"], overrides, _start_failed)
    except ConfigError as error:
        # twistd has replaced sys.stderr by its log
        os.write(2, "".join(f"{line}\n" for line in error.lines).encode())
        sys.exit(USAGE_ERROR)
    _Log.observe = TwistedTrouble(node.log)
    service: IService = node
    return service
