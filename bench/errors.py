"""What stops the benchmark with one clear line instead of a traceback."""


class BenchError(Exception):
    """Something outside the benchmark is missing or in the way; the text says what and what to do."""
