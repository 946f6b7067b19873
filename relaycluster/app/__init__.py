"""The only place where objects are wired together."""

from relaycluster.app.node import Node, make_node

__all__ = ["Node", "make_node"]
