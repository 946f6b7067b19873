"""An SMTP relay that runs as one cluster on several hosts and loses nothing that it answered 250.

A tour of the floors, from the ground up; imports go down only:

mail        what things are: address, envelope, reply, outcome, item, trace fields, notices
policy      what is decided: the queue's lifecycle, retry, ring, throttle, routing, trouble (pure functions)
smtp        the protocol without sockets: the server's and the client's conversation
interfaces  the promises between the floors
config, metrics, events   one place each for options, Prometheus families and log lines
store       the queue itself: `memory` is the reference, `redis` is the real one
net         sockets: listeners, outbound connections, DNS, TLS, HTTP
node        what a node does: edge (accept), delivery (send), membership (own), drain (leave)
app         the only place where objects are wired together
tap, cli    `twistd relaycluster` and `relaycluster VERB`

Read `docs/design/queue.md` next: it is the heart.
"""

__version__ = "0.1.0"
