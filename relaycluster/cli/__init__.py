"""The operator's command, `relaycluster VERB`."""
