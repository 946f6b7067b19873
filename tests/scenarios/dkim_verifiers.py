"""Verifiers of DKIM that share no code with us: Debian's OpenDKIM and npm's mailauth, with DNS records from a file."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support import npm, programs

Results = list[tuple[str, str]]
"""Of each signature of a message: `selector._domainkey.domain`, and "pass" or what else the verifier says. In no order."""

Verifier = Callable[[Path, Mapping[str, str], Sequence[bytes]], list[Results]]
"""Verifies messages with these TXT records (name → text); the directory is for its files."""


def opendkim(directory: Path, records: Mapping[str, str], messages: Sequence[bytes]) -> list[Results]:
    """`opendkim -t`: its filter as a milter would run it, over messages from files."""
    program = programs.require("opendkim")
    files = _write(directory, messages)
    (directory / "zone").write_text("".join(f"{name} {text}\n" for name, text in records.items()))
    config = directory / "opendkim.conf"
    config.write_text(f"Mode v\nSyslog no\nAlwaysAddARHeader yes\nTestDNSData file:{directory}/zone\n")
    command = [program, "-x", str(config), "-vv", "-t", ",".join(map(str, files))]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    output = done.stdout.decode("utf-8", "replace")
    added = re.findall(r"hname='Authentication-Results' hvalue='(.*?)'\n", output, re.DOTALL)
    assert len(added) == len(messages), output + done.stderr.decode("utf-8", "replace")
    return [_results(text) for text in added]


def _results(text: str) -> Results:
    """The methods of an Authentication-Results field (RFC 8601), `dkim=` alone."""
    found = []
    for method in re.sub(r'"[^"]*"|\([^)]*\)', "", text).split(";"):
        properties = dict(word.split("=", 1) for word in method.split() if "=" in word)
        if "header.s" in properties:
            found.append((f"{properties['header.s']}._domainkey.{properties['header.d']}", properties["dkim"]))
    return found


def mailauth(directory: Path, records: Mapping[str, str], messages: Sequence[bytes]) -> list[Results]:
    """mailauth's `dkimVerify`."""
    module = npm.module_path("mailauth")
    zone = directory / "zone.json"
    zone.write_text(json.dumps(dict(records)))
    script = Path(__file__).with_name("mailauth_verify.js")
    # It takes a header without the empty line at its end for a body. An empty body is the same as none (RFC 6376 3.4.3).
    messages = [message if b"\r\n\r\n" in message else message + b"\r\n" for message in messages]
    command = [programs.require("node"), str(script), str(module), str(zone), *map(str, _write(directory, messages))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return [[(name, result) for name, result, _ in results] for results in found]


def _write(directory: Path, messages: Sequence[bytes]) -> list[Path]:
    files = [directory / f"{number}.eml" for number in range(len(messages))]
    for file, message in zip(files, messages, strict=True):
        file.write_bytes(message)
    return files


VERIFIERS: Mapping[str, Verifier] = {"opendkim": opendkim, "mailauth": mailauth}
