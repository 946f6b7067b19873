"""What is decided: pure functions of values, `now` and `jitter`. No I/O, no clock, no Twisted."""
