"""`python -m relaycluster.cli` is the `relaycluster` command."""

from relaycluster.cli.main import main

main(prog_name="relaycluster")
