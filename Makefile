# Two commands matter: `make run` and `make test`. Each does all of its own set-up.

PYTHON ?= python3
VENV   := .venv
PEERS  := .venv-bench
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check --quiet

# Two processes of tests, since they wait as much as they work. A file of tests stays
# in one process, and files keep their order, so that the small ones come last and neither process
# is left alone with a long one. To run them one after another: make test AT_ONCE=
AT_ONCE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The interpreter underneath, so that an activated .venv is never rebuilt by itself.
BASE_PYTHON := $(shell $(PYTHON) -c 'import os, sys; print(os.path.realpath(sys._base_executable))' 2>/dev/null)
# A stamp holds this: a folder that was moved or a Python that was upgraded makes a new .venv.
export MADE_FOR := $(CURDIR) $(BASE_PYTHON) $(shell $(PYTHON) -c 'import sys; print(sys.version.split()[0])' 2>/dev/null)

# What the tests need also does for running: the second lock lies inside the first.
FOR_TEST := $(VENV)/.dev
FOR_RUN  := $(if $(wildcard $(FOR_TEST)),$(FOR_TEST),$(VENV)/.run)

.DELETE_ON_ERROR:
.PHONY: run test lint types format bench bench-scale simulate lock venv clean help

run: $(FOR_RUN).ready ## make drafts from a sample case and submit one to a local sink
	@$(PY) scripts/demo.py $(ARGS)

test: $(FOR_TEST).ready ## run every test, then the coverage gate of the core
	@bash scripts/install_test_tools.sh
	$(PY) -m pytest $(AT_ONCE) --cov --cov-report=term-missing $(ARGS)
	$(PY) scripts/core_coverage.py

lint: $(FOR_TEST).ready ## ruff: mistakes and layout
	$(PY) -m ruff check
	$(PY) -m ruff format --check

types: $(FOR_TEST).ready ## mypy, strict
	$(PY) -m mypy

format: $(FOR_TEST).ready ## lay the code out and mend what ruff can
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

bench: $(FOR_TEST).ready $(PEERS)/.made ## speed beside other programs; fails when a target is missed
	@bash scripts/install_test_tools.sh
	$(PY) -m benchmarks $(ARGS)

bench-scale: $(FOR_TEST).ready ## several workers on PostgreSQL beside procrastinate alone
	@bash scripts/install_test_tools.sh
	$(PY) -m benchmarks.fleet $(ARGS)

simulate: $(FOR_TEST).ready ## a day of 1,000,000 referrals, with outages
	$(PY) -m benchmarks.day $(ARGS)

venv: $(FOR_TEST).ready ## .venv with everything for development

# runtime and run are cut from dev's versions. To move to newer ones: make lock UPGRADE=--upgrade
LOCK = $(PY) -m uv pip compile --quiet --no-config --universal \
	--python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-annotate --no-header
lock: $(FOR_TEST).ready ## remake requirements/*.txt from pyproject.toml
	$(LOCK) pyproject.toml $(UPGRADE) --extra postgres --extra sink --extra web --group dev --output-file requirements/dev.txt
	$(LOCK) pyproject.toml --constraints requirements/dev.txt --upgrade --extra postgres --extra sink --extra web --group install --output-file requirements/run.txt
	$(LOCK) pyproject.toml --constraints requirements/dev.txt --upgrade --output-file requirements/runtime.txt
	$(LOCK) $(UPGRADE) --group bench --output-file requirements/bench.txt
	@if grep -nE 'https?://|file:|^-' requirements/*.txt; then echo "A lock names a host, a path or an option." >&2; exit 1; fi

clean: ## remove what was made here; drafts and the outbox stay
	rm -rf $(VENV) $(PEERS) dist build tests/parsers/node_modules tests/relays/node_modules tests/browser/node_modules .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

# --no-deps: a lock is complete, and an older pip, resolving pytest-cov's `coverage[toml]`, would take
# a release newer than the locked one and then refuse it for having no hash.
# The stamp comes last, so a .venv that was left half-made is made again from nothing.
$(VENV)/.run $(VENV)/.dev: $(VENV)/.%: requirements/%.txt
	@$(PYTHON) -c '' 2>/dev/null || { echo "make: no $(PYTHON) here. Debian: apt install python3 python3-venv; elsewhere: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or later is needed, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) cannot make virtual environments. Debian: apt install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) from $<"
	@"$(BASE_PYTHON)" -m venv --clear $(VENV)
	@$(PIP) install --no-deps --require-hashes --only-binary=:all: -r $<
	@printf '%s\n' "$$MADE_FOR" > $@

# Other programs to be measured beside, which would not all go with what we are built on.
$(PEERS)/.made: requirements/bench.txt
	@echo "Making $(PEERS) from $<"
	@"$(BASE_PYTHON)" -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --require-hashes --only-binary=:all: -r $<
	@printf '%s\n' "$$MADE_FOR" > $@

# The checkout itself, installed in place, with no build environment fetched for it.
$(VENV)/.run.ready $(VENV)/.dev.ready: $(VENV)/.%.ready: $(VENV)/.% pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@env -u PYTHONDONTWRITEBYTECODE $(PY) -m compileall -q referrals
	@touch $@

# A stamp made for another folder or another Python counts for nothing.
ifneq ($(wildcard $(FOR_RUN)),)
ifneq ($(strip $(shell cat $(FOR_RUN))),$(strip $(MADE_FOR)))
.PHONY: $(FOR_RUN)
endif
endif
ifneq ($(wildcard $(PEERS)/.made),)
ifneq ($(strip $(shell cat $(PEERS)/.made)),$(strip $(MADE_FOR)))
.PHONY: $(PEERS)/.made
endif
endif
