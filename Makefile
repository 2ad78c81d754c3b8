# The commands people use. Everything works from a clean clone with Python 3.11+, python3-venv and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## .venv with the locked dependencies

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

run: setup  ## start everything here; prints a login link
	@exec $(BIN)/roomtape up

test: setup lint type  ## the tests of CI
	$(BIN)/python -m pytest

test-long: setup  ## sweeps and soaks, whole
	$(BIN)/python -m pytest -m "long or not long" --timeout 7200

lint: setup  ## style
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench

type: setup  ## types
	$(BIN)/mypy

bench: setup  ## benchmarks: a table and bench-results.json
	$(BIN)/python -m bench

lock:  ## renew requirements.lock
	uv pip compile --universal --generate-hashes --no-annotate --no-header --python-version 3.11 --extra dev pyproject.toml -o requirements.lock

.PHONY: help setup run test test-long lint type bench lock
