"""`python -m tests.fuzz --seconds 600`: coverage-guided fuzzing with atheris (requirements/fuzz.txt), one target after the other.

    --targets a,b      only these
    --jobs N           so many targets at once
    --keep             take over what was found into the committed corpus, minimised

Exit status 0: nothing was found. 1: a target failed; the input is shown, and it lies in build/fuzz/TARGET. Add it to
`seeds.py` when the fault is mended.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.seeds import SEEDS

REPOSITORY = Path(__file__).resolve().parents[2]
WORK = REPOSITORY / "build" / "fuzz"
LONGEST_INPUT = 1500
MOST_MEBIBYTES = 700
SLOWEST_SECONDS = 10
GROWTH_MEBIBYTES = 150  # the corpus itself, coverage tables, Python's arenas


def dictionary() -> str:
    """Words that are worth trying, as libFuzzer wants them."""
    words = [
        *(
            "EHLO c\r\n",
            "HELO c\r\n",
            "MAIL FROM:<a@b.c>",
            "RCPT TO:<d@e.f>",
            "DATA\r\n",
            "BDAT 3 LAST\r\n",
            "BDAT 2\r\n",
        ),
        *(
            "RSET\r\n",
            "NOOP\r\n",
            "QUIT\r\n",
            "STARTTLS\r\n",
            "AUTH PLAIN ",
            "AUTH LOGIN\r\n",
            "VRFY x\r\n",
            "HELP\r\n",
        ),
        *("\r\n", "\r\n.\r\n", "\n.\n", "\r.\r", "\n.\r\n", "\r\n.\n", "\r\n..", "*\r\n", "=\r\n", "AGEAYg==", "YQ=="),
        *(
            " SIZE=9",
            " BODY=8BITMIME",
            " SMTPUTF8",
            " RET=FULL",
            " ENVID=a",
            " NOTIFY=NEVER",
            " ORCPT=rfc822;a@b.c",
            " AUTH=<>",
        ),
        *(
            "PROXY TCP4 ",
            "PROXY TCP6 ",
            "PROXY UNKNOWN\r\n",
            "[IPv6:::1]",
            "[1.2.3.4]",
            '"',
            "\\",
            "<@x:",
            "<>",
            "%",
            "=?utf-8?q?",
        ),
        *("\xfe\xfeTLS", "\xfd\x10", "\xfd\xff", "From: ", "Sender: ", ": ;", "(", ")"),
    ]
    quoted = ("".join(f"\\x{octet:02x}" for octet in word.encode("latin-1")) for word in words)
    return "".join(f'"{word}"\n' for word in quoted)


def fuzz(target: str, arguments: Sequence[str]) -> None:
    """In a process of its own: libFuzzer never returns."""
    import atheris  # type: ignore[import-untyped, unused-ignore]

    # Only what is under test guides: the judge would cost as much again.
    with atheris.instrument_imports(
        include=["relaycluster.smtp", "relaycluster.mail.header", "relaycluster.net.proxy_header"]
    ):
        from tests.fuzz.targets import TARGETS

    # Where libFuzzer starts itself again (to minimise), it does so by its first word.
    again = WORK / target / "again"
    again.parent.mkdir(parents=True, exist_ok=True)
    again.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz --inside {target} "$@"\n')
    again.chmod(0o755)
    atheris.Setup([str(again), *arguments], TARGETS[target])
    atheris.Fuzz()


def run(target: str, seconds: float) -> tuple[bool, str]:
    """One target for so long; whether it held, and what to print."""
    directory = WORK / target
    found = directory / "corpus"
    found.mkdir(parents=True, exist_ok=True)
    words = directory / "dictionary"
    words.write_text(dictionary())
    with tempfile.TemporaryDirectory() as known:
        for number, data in enumerate(corpus.inputs(target)):
            (Path(known) / f"{number:05}").write_bytes(data)
        command = [
            *(sys.executable, "-m", "tests.fuzz", "--inside", target, f"-max_total_time={seconds:.0f}"),
            *(f"-artifact_prefix={directory}/", f"-rss_limit_mb={MOST_MEBIBYTES}", f"-timeout={SLOWEST_SECONDS}"),
            *(f"-max_len={LONGEST_INPUT}", f"-dict={words}", "-print_final_stats=1", "-use_value_profile=1"),
            *(str(found), known),
        ]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, errors="replace", check=False)
    said = done.stderr + done.stdout
    (directory / "log").write_text(said)
    return judge(target, done.returncode, said)


def judge(target: str, status: int, said: str) -> tuple[bool, str]:
    """What libFuzzer's words mean."""
    if status:
        tail = "\n".join(said.splitlines()[-45:])
        return False, f"{target}: FAILED\n{tail}"
    runs = re.search(r"stat::number_of_executed_units: (\d+)", said)
    memory = [int(number) for number in re.findall(r"rss: (\d+)Mb", said)]
    covered = re.findall(r"cov: (\d+)", said)
    if not runs or not memory:
        return False, f"{target}: libFuzzer told nothing\n{said[-2000:]}"
    growth = memory[-1] - memory[0]
    text = f"{target}: {int(runs[1]):,} runs, coverage {covered[-1]}, {memory[0]} → {memory[-1]} MiB"
    if growth > GROWTH_MEBIBYTES:
        return False, f"{text}: FAILED, it grows"
    return True, text


def keep(target: str) -> str:
    """The smallest set of inputs that reaches all that the found ones reach becomes the committed corpus."""
    directory = WORK / target
    with tempfile.TemporaryDirectory() as known, tempfile.TemporaryDirectory() as merged:
        for number, data in enumerate(corpus.inputs(target)):
            (Path(known) / f"{number:05}").write_bytes(data)
        command = [
            *(
                sys.executable,
                "-m",
                "tests.fuzz",
                "--inside",
                target,
                "-set_cover_merge=1",
                f"-max_len={LONGEST_INPUT}",
            ),
            *(merged, known, str(directory / "corpus")),
        ]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not any(Path(merged).iterdir()):
            return f"{target}: not minimised\n{done.stderr[-2000:]}"
        count = corpus.write(target, (path.read_bytes() for path in Path(merged).iterdir()))
    shutil.rmtree(directory / "corpus")
    return f"{target}: {count} inputs kept"


def main(words: Sequence[str]) -> int:
    """The exit status."""
    if words[:1] == ["--inside"]:
        fuzz(words[1], words[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--targets", default=",".join(SEEDS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args(words)
    targets = options.targets.split(",")
    unknown = [target for target in targets if target not in SEEDS]
    if unknown:
        parser.error(f"no target {unknown[0]!r}; known: {', '.join(SEEDS)}")
    try:
        import atheris  # noqa: F401
    except ImportError:
        parser.error("atheris is missing: pip install -r requirements/fuzz.txt")
    share = max(1.0, options.seconds * options.jobs / len(targets))
    good = True
    with ThreadPoolExecutor(options.jobs) as pool:
        for held, text in pool.map(lambda target: run(target, share), targets):
            good = good and held
            print(text, flush=True)
    if options.keep and good:
        for target in targets:
            print(keep(target), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
