"""Sockets: the SMTP listeners, the connections to next hops, DNS, TLS and the operator's HTTP."""
