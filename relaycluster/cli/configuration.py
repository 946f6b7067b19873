"""The verbs about the configuration file: is it right, and what may stand in it."""

from __future__ import annotations

import json
import os
import time

import click

from relaycluster import config


@click.command("check-config")
@click.option("--config", "path", metavar="FILE", help="The file; without it, the defaults and the environment.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check_config(context: click.Context, path: str | None, as_json: bool) -> None:
    """Read the configuration and the files that it names as a node would, and say what is wrong.

    Exit status 0: it is right (there may be warnings). 2: it is not; each line tells a file, a key, what is wrong and the
    fix. Values of RELAYCLUSTER_SECTION__KEY in the environment are part of it.
    """
    errors: list[str] = []
    warnings: list[str] = []
    summary = ""
    try:
        read = config.load(path, os.environ)
        warnings = config.warnings(read)
        summary = _summary(read)
        errors = _file_troubles(read)
    except config.ConfigError as error:
        errors = error.lines
    if as_json:
        report = {"ok": not errors, "file": path, "errors": errors, "warnings": warnings}
        click.echo(json.dumps(report, ensure_ascii=True, indent=2))
    else:
        for line in warnings:
            click.echo(f"{path or 'defaults'}: warning: {line}", err=True)
        for line in errors:
            click.echo(line, err=True)
        if not errors:
            click.echo(f"ok {path or 'defaults'}: {summary}")
    context.exit(2 if errors else 0)


def _file_troubles(read: config.Config) -> list[str]:
    """What is wrong in certificates, keys, users and aliases. What reads them is imported only where there are any."""
    access = read.access
    if not (read.tls.certificate or read.dkim or access.users_file or access.aliases_file):
        return []
    from relaycluster.node import named_files

    return named_files.troubles(read, time.time)  # noqa: TID251 (a command lives by the wall clock)


def _summary(read: config.Config) -> str:
    listeners = ", ".join(str(listener.address) for listener in read.listener) if "edge" in read.node.roles else "none"
    queue = read.redis.target
    where = {"embedded": "embedded Redis", "unix": f"Redis at {queue.path}"}.get(
        queue.kind, f"Redis at {queue.host}:{queue.port}"
    )
    return f"node {read.node.id} ({', '.join(read.node.roles)}); listeners: {listeners}; {where}"


@click.command("config-schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    click.echo(json.dumps(config.Config.model_json_schema(), indent=2))
