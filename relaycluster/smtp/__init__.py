"""The protocol without sockets: bytes go in, events and bytes come out (RFC 5321)."""
