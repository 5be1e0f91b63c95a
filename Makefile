SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "osteo needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 setup" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep -oE '^uv==[0-9.]+' requirements.lock)"
	@# bytecode now: imports at every start are five times faster than without
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.PHONY: setup
setup: .venv/ready ## make .venv with everything in it, osteo too

.PHONY: run
run: setup ## sweep three backbones on phantom radiographs and compare them; TASK=three_class asks another question
	$(BIN)/osteo train -m experiment=quickstart $(if $(TASK),task=$(TASK))

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: test
test: setup ## run the tests, except those marked slow
	$(PYTEST) -m "not slow"

.PHONY: test-slow
test-slow: setup ## run the tests marked slow: kills, clusters, many pictures, whole sweeps
	$(PYTEST) -m slow

.PHONY: test-all
test-all: test-slow test ## run all tests

.PHONY: lint
lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: setup ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: setup ## measure speed against baselines, into benchmarks/results
	$(BIN)/python -m benchmarks

.PHONY: dashboard
dashboard: setup ## compare the runs of the last sweep in the terminal
	@last=$$(ls -td multirun/*/*/wandb outputs/*/*/wandb 2>/dev/null | head -n 1 || true); \
	  if [ -z "$$last" ]; then echo "no runs yet: make run" >&2; exit 1; fi; \
	  echo "$(BIN)/wandb leet $$last"; $(BIN)/wandb leet "$$last"

.PHONY: lock
lock: setup ## renew requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --all-extras pyproject.toml --output-file requirements.lock

.PHONY: clean
clean: ## remove .venv and caches; runs stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info
