# Every target sets up what it needs by itself; the second time there is nothing to do.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Bytecode saves 3 s at each start of a Ray worker.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PYTHON_DIRS := platform runtimes autoscaler providers tests benchmarks examples scripts
BASE := .venv/.setup-base
TORCH := .venv/.setup-torch
TOOLS := .venv/.setup-tools
ONCE ?=
PYTEST_ARGS ?=
TEST_WORKERS ?= 2

.PHONY: help setup run test coverage chaos check format bench bench-autoscaler docs lock clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(BASE) ## Make .venv; the command is then .venv/bin/headrace

$(BASE): requirements.lock requirements-bootstrap.lock pyproject.toml scripts/setup.sh
	@scripts/setup.sh base
	@touch $@

$(TORCH): $(BASE) requirements-torch.lock
	@scripts/setup.sh torch
	@touch $@

$(TOOLS): $(BASE) scripts/setup.sh scripts/criu.sh
	@scripts/setup.sh tools
	@touch $@

run: $(BASE) ## Start the platform, deploy examples/ocr.py, call it from zero (ONCE=1: stop after the answer)
	@$(BIN)/python scripts/run_demo.py $(if $(filter-out 0,$(ONCE)),--once)

test: $(BASE) $(TORCH) $(TOOLS) ## Run all tests
	@TEST_STRICT_SKIPS=1 timeout --foreground --kill-after=30 1800 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

# Without the property tests, as what is covered must not hang on chance, and without the simulator's.
coverage: $(BASE) ## Fail when a line or branch of the autoscaler's policy has no test of its own
	@COVERAGE_FILE=.venv/.coverage timeout --foreground --kill-after=30 600 $(BIN)/python -m pytest -q -n $(TEST_WORKERS) \
		-m "not hypothesis" --ignore-glob='*/test_simulate_*' tests/unit/autoscaler \
		--cov --cov-report=term-missing:skip-covered --cov-fail-under=100 $(PYTEST_ARGS)

chaos: $(BASE) $(TOOLS) ## Kill parts of a platform under load: SEED=n SECONDS=n (default: 1 and 60)
	@CHAOS_SEED=$(or $(SEED),1) CHAOS_SECONDS=$(or $(SECONDS),60) $(BIN)/python -m pytest tests/chaos -s $(PYTEST_ARGS)

check: $(BASE) ## Format, lint, types, import directions, dependencies, spelling
	@$(BIN)/ruff format --check --quiet $(PYTHON_DIRS) || { echo "check: \`make format\` formats these files"; exit 1; }
	@$(BIN)/ruff check --quiet $(PYTHON_DIRS)
	@$(BIN)/mypy
	@$(BIN)/lint-imports >.venv/.lint-imports.txt 2>&1 || $(BIN)/lint-imports
	@$(BIN)/deptry --no-ansi platform runtimes autoscaler providers 2>.venv/.deptry.txt || { cat .venv/.deptry.txt; exit 1; }
	@$(BIN)/typos

format: $(BASE) ## Format the code and apply safe fixes
	@$(BIN)/ruff format $(PYTHON_DIRS)
	@$(BIN)/ruff check --fix $(PYTHON_DIRS)

bench: $(BASE) $(TORCH) $(TOOLS) ## Measure us and the peers, refresh benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks

bench-autoscaler: $(BASE) ## Simulate the autoscaler beside others and beside bare metal, for hours (DATA=folder)
	@$(if $(DATA),HEADRACE_DATA=$(DATA)) $(BIN)/python -m benchmarks autoscaler serverless_effect

docs: $(BASE) ## Write docs/reference/cli.md from the commands, and the tables of parameters
	@$(BIN)/python scripts/cli_reference.py
	@$(BIN)/python scripts/autoscaler_reference.py

lock: $(BASE) ## Resolve the dependencies again and write the lock files
	@scripts/lock.sh

clean: ## Remove .venv and all caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
