"""The queue, the limits and the membership in Redis. Nobody above knows which client is in use."""
