"""The benchmark: relaycluster, and on demand Postfix, under the same load on this machine (`make bench`).

tools        builds and drives the two C programs: `load` (SMTP clients) and `sink` (the receiving MXs)
peers        how each measured server is configured and started
node         one running peer: start, readiness, stop, and what it has used so far
accounting   CPU and memory of all processes of a peer (cgroup v2, else a walk through /proc)
redis_stats  what the embedded Redis says about itself
machine      what the whole machine did meanwhile: other tenants, disk flushes
suites       accept, relay, latency, deep: what is done and counted
report       the table and the JSON
run          the command line; profile: the relay suite under cProfile
"""
