"""The `relaycluster` command: the verbs are found here by name, and each family of them is imported only when used."""

from __future__ import annotations

from importlib import import_module

import click

from relaycluster import __version__

# Verb → the module and the command in it. One module for each family of verbs.
VERBS = {
    "status": "relaycluster.cli.cluster_status:status",
    "nodes": "relaycluster.cli.cluster_status:nodes",
    "ring": "relaycluster.cli.cluster_status:ring",
    "queue": "relaycluster.cli.queue_looking:queue",
    "list": "relaycluster.cli.queue_looking:list_items",
    "show": "relaycluster.cli.queue_looking:show_item",
    "trace": "relaycluster.cli.queue_looking:trace",
    "explain": "relaycluster.cli.queue_explain:explain",
    "flush": "relaycluster.cli.queue_acts:flush",
    "hold": "relaycluster.cli.queue_acts:hold",
    "release": "relaycluster.cli.queue_acts:release",
    "requeue": "relaycluster.cli.queue_acts:requeue",
    "bounce": "relaycluster.cli.queue_acts:bounce",
    "delete": "relaycluster.cli.queue_acts:delete",
    "suspend": "relaycluster.cli.queue_acts:suspend",
    "resume": "relaycluster.cli.queue_acts:resume",
    "check-config": "relaycluster.cli.configuration:check_config",
    "config-schema": "relaycluster.cli.configuration:config_schema",
    "user": "relaycluster.cli.user:user",
    "dkim": "relaycluster.cli.dkim:dkim",
    "doctor": "relaycluster.cli.doctor.command:doctor",
}


class Verbs(click.Group):
    """A group whose commands are imported on first use, so that the command starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *VERBS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return super().get_command(ctx, cmd_name)
        module, _, name = VERBS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="relaycluster")
def main() -> None:
    """Look after a relaycluster: an SMTP relay that runs as one cluster on several hosts."""
