"""Debian packages that must not be installed, because they exclude others: downloaded and unpacked into `build/debian`.

Each server runs in a root directory of its own, made for one test: the unpacked package, the libraries that it needs from this
system, and its users. So the paths and names that are compiled into it are right, and the system's stay as they are.
Without root, apt or a mirror the tests that need a package are skipped by name, or fail with `CI=true`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import programs
from tests.support.processes import REPOSITORY

UNPACKED = REPOSITORY / "build" / "debian"
FIRST_UID = 61_000
"""Users of such a root: numbers that no system gives out by itself (Debian policy, 9.2.2: reserved from 60000 to 64999)."""
DEVICES = {"null": (1, 3), "zero": (1, 5), "urandom": (1, 9)}


def unpacked(package: str) -> Path:
    """The directory of an unpacked package, with all that it depends on and this system has not; otherwise the test is skipped."""
    if os.geteuid() != 0:
        programs.lacking(f"{package} has to be started by root, in a root directory of its own")
    trouble = unpack(package)
    if trouble:
        programs.lacking(f"the Debian package {package} is missing: {trouble}")
    return UNPACKED / package


def unpack(package: str) -> str:
    """Bring `build/debian` to what this system's apt offers; empty, or why that can not be done here."""
    target = UNPACKED / package
    if target.is_dir():
        return ""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    UNPACKED.mkdir(parents=True, exist_ok=True)
    with (UNPACKED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once
        if target.is_dir():
            return ""
        archives = UNPACKED / f"{package}.archives"
        try:
            return _download(package, archives) or _extract(package, archives, target)
        finally:
            shutil.rmtree(archives, ignore_errors=True)


def _download(package: str, archives: Path) -> str:
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    # Only downloaded: that it would remove another mail server is a plan that nobody carries out.
    command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "--download-only"]
    options = {
        "Debug::NoLocking": "1",
        "APT::Keep-Downloaded-Packages": "true",
        "APT::Sandbox::User": "root",
        "Dir::Cache::archives": str(archives),
    }
    command += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    done = _run([*command, package])
    if done.returncode:
        _run(["apt-get", "update", "-qq"])
        done = _run([*command, package])
    if done.returncode or not any(archives.glob(f"{package}_*.deb")):
        return " ".join(f"apt-get: {done.stderr.strip() or 'nothing was downloaded'}".split())[:400]
    return ""


def _extract(package: str, archives: Path, target: Path) -> str:
    fresh = UNPACKED / f"{package}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    for archive in sorted(archives.glob("*.deb")):
        done = _run(["dpkg", "-x", str(archive), str(fresh)])
        if done.returncode:
            return f"dpkg: {done.stderr.strip()}"[:400]
    for path in fresh.rglob("*"):  # nothing in a checkout may lend its rights to whoever starts it
        if path.is_file() and not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~(stat.S_ISUID | stat.S_ISGID))
    fresh.rename(target)
    return ""


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, env=environment, timeout=180
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no answer within 180 s")


class Root:
    """A root directory with one unpacked package, for one test: what it is given to run can be run there by `command`.

    `binaries` are paths in it, or else of this system; `users` are its accounts, name → home.
    """

    def __init__(self, path: Path, package: str, binaries: Sequence[str], users: Mapping[str, str]) -> None:
        self.path = path
        shutil.copytree(unpacked(package), path, symlinks=True)
        for directory in ("dev", "etc", "tmp", "var/mail", "var/run"):
            (path / directory).mkdir(parents=True, exist_ok=True)
        (path / "tmp").chmod(0o1777)
        for name, numbers in DEVICES.items():
            try:
                os.mknod(path / "dev" / name, stat.S_IFCHR, os.makedev(*numbers))
            except OSError as error:
                programs.lacking(f"{package} needs a root directory with devices, which can not be made here: {error}")
            (path / "dev" / name).chmod(0o666)
        self._users = {name: FIRST_UID + number for number, name in enumerate(users)}
        accounts = ["root:x:0:0::/:/bin/sh"]
        accounts += [f"{name}:x:{uid}:{uid}::{users[name]}:/bin/sh" for name, uid in self._users.items()]
        (path / "etc/passwd").write_text("".join(f"{line}\n" for line in accounts))
        groups = ["root:x:0:", *(f"{name}:x:{uid}:" for name, uid in self._users.items())]
        (path / "etc/group").write_text("".join(f"{line}\n" for line in groups))
        self.write("etc/hosts", "127.0.0.1 localhost\n")
        self.write("etc/resolv.conf", "nameserver 127.0.0.1\n")
        for program in binaries:
            inside = path / program.lstrip("/")
            if not inside.exists():
                self._bring(program)
            self._bring_libraries(inside)

    def uid(self, user: str) -> int:
        """The number of an account (and of its group)."""
        return self._users[user]

    def write(self, name: str, text: str | bytes, *, owner: str = "", mode: int = 0o644) -> None:
        """A file; its directory is made."""
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode() if isinstance(text, str) else text)
        place.chmod(mode)
        if owner:
            os.chown(place, self.uid(owner), self.uid(owner))

    def directory(self, name: str, *, owner: str = "", mode: int = 0o755) -> Path:
        """A directory with this owner and mode, there before or not."""
        place = self.path / name
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(mode)
        uid = self.uid(owner) if owner else 0
        os.chown(place, uid, uid)
        return place

    def command(self, *words: str) -> list[str]:
        """The command that runs these words in this root."""
        chroot = shutil.which("chroot", path=programs.SEARCH_PATH)
        assert chroot is not None, "coreutils without chroot"
        return [chroot, str(self.path), *words]

    def _bring(self, program: str) -> None:
        place = self.path / program.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(program, place)  # follows links

    def _bring_libraries(self, program: Path) -> None:
        own = [str(directory) for directory in (*self.path.glob("usr/lib/*-linux-*"), *self.path.glob("lib/*-linux-*"))]
        environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(own)}
        told = subprocess.run(
            ["ldd", str(program)], capture_output=True, text=True, check=False, env=environment
        ).stdout
        if missing := re.findall(r"(\S+) => not found", told):
            programs.lacking(f"{program.name} needs {', '.join(missing)}")
        for library in re.findall(r"(/\S+) \(0x", told):
            if not Path(library).is_relative_to(self.path) and not (self.path / library.lstrip("/")).exists():
                self._bring(library)
