"""The `relaycluster` command: the verbs are found here by name, and each family of them is imported only when used."""

from __future__ import annotations

from importlib import import_module

import click

from relaycluster import __version__

# Verb → the module and the command in it. One module for each family of verbs.
VERBS = {
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
