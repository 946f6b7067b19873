"""Real Redis servers for the contract suites: one of each major version, started once, stopped at exit."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

BINARIES = (str(Path(sys.executable).parent / "redis-server"), "/usr/bin/redis-server", "/usr/local/bin/redis-server")


def binary_for(major: int) -> str | None:
    """A redis-server of this major version."""
    for binary in BINARIES:
        if os.access(binary, os.X_OK):
            shown = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
            found = re.search(r"v=(\d+)\.", shown)
            if found and int(found.group(1)) == major:
                return binary
    return None


@cache
def server_for(major: int) -> str | None:
    """The unix socket of a running server with the queue's durability; None when there is no such server here."""
    binary = binary_for(major)
    if binary is None:
        return None
    directory = tempfile.mkdtemp(prefix=f"relaycluster-redis{major}-")
    socket = f"{directory}/redis.sock"
    options = {
        "port": "0",
        "unixsocket": socket,
        "dir": directory,
        "save": "",
        "appendonly": "yes",
        "appendfsync": "always",
        "logfile": f"{directory}/log",
        "enable-debug-command": "yes",
    }
    if major < 7:
        del options["enable-debug-command"]
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    process = subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)

    atexit.register(stop)
    while not os.path.exists(socket):
        if process.poll() is not None:
            return None
        os.sched_yield()
    return socket
