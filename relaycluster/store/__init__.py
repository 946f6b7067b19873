"""Where the queue lives: a reference implementation in memory, and Redis."""
