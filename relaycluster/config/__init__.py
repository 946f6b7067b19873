"""The configuration: one TOML file, typed and frozen, of which every fault is told before a socket opens.

`load` reads it; `Config` and its sections say what there is; `warnings` is what an operator should know.
"""

from relaycluster.config.checks import warnings
from relaycluster.config.load import ConfigError, load
from relaycluster.config.model import Config, Delivery, Destination, Limits, Listener, RedisTarget
from relaycluster.config.values import Network

__all__ = [
    "Config",
    "ConfigError",
    "Delivery",
    "Destination",
    "Limits",
    "Listener",
    "Network",
    "RedisTarget",
    "load",
    "warnings",
]
