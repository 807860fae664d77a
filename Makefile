# Everything sets itself up: `make test` and `make demo` need Python 3.11 or newer and a package index, nothing else.
# Another Python:      make test PYTHON=python3.12     (in an environment of its own, .venv-python3.12)
# One test:            make test ARGS="-k cadence"
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?=
VENV   ?= .venv$(addprefix -,$(notdir $(PYTHON)))
ARGS   ?=
BIN    := $(VENV)/bin

OLDEST := $(VENV)-oldest
SECOND := tests/loop tests/scale
THIRD  := tests/faults tests/contract
FOURTH := tests/invariants tests/properties tests/server
APART  := $(SECOND) $(THIRD) $(FOURTH)
MEASURED := $(BIN)/python -m pytest --cov --cov-report= --cov-fail-under=0

.PHONY: help setup test soak demo bench bench-reflect scale stores retrieval upstream lint types format ci clean

help:  ## show this
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.test $(VENV)/.dev  ## make the environment with every tool in it

test: $(VENV)/.test  ## run the tests with the coverage gate
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@echo "Four parts at a time; what $(APART) say comes after the rest, and the coverage of all at the end."
	@logs=$$(mktemp -d); status=0; others=(); rm -f .coverage.part*; \
	part() { COVERAGE_FILE=.coverage.part$$1 $(MEASURED) "$${@:2}" >"$$logs/$$1" 2>&1; }; \
	part 2 $(SECOND) & others+=($$!); part 3 $(THIRD) & others+=($$!); part 4 $(FOURTH) & others+=($$!); \
	COVERAGE_FILE=.coverage.part1 $(MEASURED) $(addprefix --ignore=,$(APART)) || status=1; \
	for one in "$${others[@]}"; do wait $$one || status=1; done; cat "$$logs"/*; rm -rf "$$logs"; \
	$(BIN)/python -m coverage combine -q .coverage.part* && $(BIN)/python -m coverage report || status=1; exit $$status
endif

soak: $(VENV)/.test  ## kill hundreds of processes on SQLite and on PostgreSQL and judge what is left (ARGS="--kills 300 --ledger sqlite")
	@$(BIN)/python -m tests.faults.soak $(ARGS)

demo: $(VENV)/.demo  ## watch a small real model learn house rules from rejections (ARGS=--scripted: seconds, no model)
	@$(BIN)/reflect demo $(ARGS)

bench: $(VENV)/.test  ## measure what wrapping costs per run
	@$(BIN)/python -m benchmarks.overhead $(ARGS)

bench-reflect: $(VENV)/.bench  ## measure what a small real model learns of hidden rules, in nine ways (hours; ARGS="--worlds shipping --seeds 1" is short)
	@$(BIN)/python -m benchmarks.reflecting $(ARGS)

scale: $(VENV)/.test  ## measure what the size of a ledger costs (long; ARGS="--episodes 1000 30000" is short)
	@$(BIN)/python -m benchmarks.scale $(ARGS)

retrieval: $(VENV)/.test  ## measure how well lessons are found (ARGS="--embeddings openai:text-embedding-3-small" for yours)
	@$(BIN)/python -m benchmarks.retrieval $(ARGS)

stores: $(VENV)/.test  ## measure what a search costs in each store (long; ARGS="--stores exact chroma --sizes 1000 20000" is short)
	@$(BIN)/python -m benchmarks.stores $(ARGS)

upstream: $(VENV)/.upstream $(OLDEST)/.upstream  ## run LangChain's and LangGraph's own tests with us in every graph (long)
	@status=0; for venv in $(VENV) $(OLDEST); do $$venv/bin/python tests/upstream/run.py $(ARGS) || status=1; done; exit $$status

lint: $(VENV)/.dev  ## ruff, format check and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: $(VENV)/.dev  ## mypy, strict
	@$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff format and fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

ci:  ## everything that must pass before a change lands
	@.ci/run

clean:  ## remove the environments and caches
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist

# One stamp per set of packages: set-up runs again only when pyproject.toml changes.
$(VENV)/.test: WANT = test
$(VENV)/.test: SIZE = about 195 MB
$(VENV)/.demo: WANT = demo
$(VENV)/.demo: SIZE = about 235 MB
$(VENV)/.demo: NOTE = Then the demo says which model it uses: a provider's by --model or key, else a local one (1.1 GB, once), or none (ARGS=--scripted).
$(VENV)/.bench: WANT = bench
$(VENV)/.bench: SIZE = about 245 MB
$(VENV)/.bench: NOTE = Then it runs on a small local model (1.1 GB, once), or on a server of yours (ARGS="--base-url URL --model NAME").
$(VENV)/.dev: WANT = dev
$(VENV)/.dev: SIZE = about 345 MB
$(VENV)/.upstream: WANT = upstream
$(VENV)/.upstream: SIZE = about 155 MB
$(VENV)/.test $(VENV)/.demo $(VENV)/.bench $(VENV)/.dev $(VENV)/.upstream: pyproject.toml | $(BIN)/python
	@echo "Installing the '$(WANT)' packages into $(VENV): $(SIZE) from your package index, once."
	@$(if $(NOTE),echo "$(NOTE)")
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(WANT)]'
	@touch $@

# The lowest versions of the judged packages; the tools that their tests need may be newer.
$(OLDEST)/.upstream: pyproject.toml tests/lowest.txt | $(BIN)/python
	@echo "Installing the 'upstream' packages at the lowest versions into $(OLDEST), once."
	@$(BIN)/python -m venv --clear $(OLDEST)
	@grep -E '^(langgraph|langgraph-prebuilt|langchain|langchain-core)==' tests/lowest.txt > $(OLDEST)/lowest.txt
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[upstream]' --constraint $(OLDEST)/lowest.txt
	@touch $@

$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Making $(VENV) with $$("$$python" --version) ($$python)."; \
	    "$$python" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "'$$python -m venv' failed. On Debian and Ubuntu: apt install python3-venv." >&2; exit 1; \
	  fi; \
	done; \
	echo "reflect-middleware needs Python 3.11 or newer; tried: $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)." >&2; \
	echo "Install one, or name it: make test PYTHON=/path/to/python3.11" >&2; exit 1
