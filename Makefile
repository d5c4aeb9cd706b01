# Everything a newcomer and CI need: `make help`. Nothing but git, Python 3.11+ and a package index is required.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CHAOS_SECONDS ?= 180
BENCHMARKS := streams short-turns latency growth against-peers

.DEFAULT_GOAL := help
.PHONY: help install demo up test test-unit format check lint types layers docs docs-check promtool bench chaos clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## Build .venv with everything in it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## Run a tour of real turns on the embedded stack, then stop everything
	$(BIN)/python -m turnkeeper_ops.demo

up: install  ## Keep the embedded stack running and print its addresses
	$(BIN)/turnkeeper dev

test: install  ## Run all tests on the embedded services
	$(BIN)/python -m pytest

test-unit: install  ## Run the tests that need no service
	$(BIN)/python -m pytest tests/unit

format: install  ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install  ## Check format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install  ## Check types
	$(BIN)/mypy

layers: install  ## Check who may import whom
	$(BIN)/lint-imports

docs: install  ## Write the generated tables of the docs
	$(BIN)/python -m turnkeeper_ops.docs_tables

docs-check: install  ## Check that the generated tables are fresh
	$(BIN)/python -m turnkeeper_ops.docs_tables --check

promtool: install  ## Fetch promtool into .venv on Debian, without root, so that the alerts' own tests run
	cd $(VENV) && apt-get download --quiet -o Acquire::http::Timeout=10 prometheus && dpkg-deb --extract prometheus_*.deb promtool && \
	cp promtool/usr/bin/promtool bin/ && rm -rf promtool prometheus_*.deb

bench: install  ## Print what things cost, as ratios within one run (ten minutes)
	$(BIN)/python tests/benchmarks/classify.py
	$(BIN)/python tests/benchmarks/chains.py 500
	$(BIN)/python tests/benchmarks/cooldown.py
	$(MAKE) --no-print-directory $(BENCHMARKS:%=bench-%)

bench-%: install
	$(BIN)/python -m tests.benchmarks.$(subst -,_,$*) $(BENCH)

chaos: install  ## Run hundreds of turns while workers and servers die, and audit what is left
	$(BIN)/python -m tests.chaos --seconds $(CHAOS_SECONDS) $(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

check: lint types layers docs-check test  ## Everything CI checks

clean:  ## Remove what the other targets made
	rm -rf $(VENV) .bench .turnkeeper .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
