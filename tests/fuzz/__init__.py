"""Coverage-guided fuzzing of everything that reads octets from strangers.

`targets.py` says what may be fed to what and what must hold then; `reference.py` is the slow and obvious reading of an SMTP
session that the fast one is compared with; `python -m tests.fuzz` runs atheris over the targets; `corpus/` holds what it
found worth keeping, and `test_corpus.py` replays that in the suite, where atheris is not needed.
"""
