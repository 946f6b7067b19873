"""The ground floor: what things are. Frozen values; no I/O, no clock, no Twisted."""
