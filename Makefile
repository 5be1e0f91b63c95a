SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
# pypi, or cpu: PyTorch's CPU build; what was chosen stays until the other is asked for
TORCH ?= $(or $(shell cat .venv/torch 2>/dev/null),pypi)
READY := .venv/ready-$(TORCH)

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

$(READY): requirements.lock pyproject.toml
	@[ "$(TORCH)" = pypi ] || [ "$(TORCH)" = cpu ] || { echo "TORCH=$(TORCH): choose cpu or pypi" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "osteo needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 setup" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep -oE '^uv==[0-9.]+' requirements.lock)"
	@# bytecode now: imports at every start are five times faster than without
	@# torch and torchvision come from one index, or the second does not load
ifeq ($(TORCH),cpu)
	.ci/cpu-lock > .venv/cpu.lock
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --torch-backend=cpu .venv/cpu.lock
else
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
endif
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@rm -f .venv/ready-*
	@echo $(TORCH) > .venv/torch
	@touch $@

.PHONY: setup
setup: $(READY) ## make .venv with everything in it, osteo too; TORCH=cpu leaves CUDA out

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

.PHONY: docs
docs: setup ## build the documentation into site/, strictly
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs site

.PHONY: test-python
test-python: setup ## install the wheel under another Python and train there: make test-python VERSION=3.12
	.ci/installed $(or $(VERSION),$(error name a Python: make test-python VERSION=3.12))

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
	rm -rf .venv site .mypy_cache .pytest_cache .ruff_cache *.egg-info
