# Two commands are enough: `make serve` and `make test`.  Set-up lives in scripts/setup.py.
.DEFAULT_GOAL := help
.PHONY: help setup setup-test serve test lint types bench clean

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Set up everything that serving needs in .venv
	@$(PYTHON) scripts/setup.py

setup-test:
	@$(PYTHON) scripts/setup.py --for test

serve: setup  ## Start the gateway on 127.0.0.1:8000 (PORT=9000 for another port)
	@exec $(BIN)/havengate serve --port $(PORT)

test: lint types  ## Run linters, types, the import contract and the whole test suite
	@$(BIN)/python -m pytest

lint: setup-test  ## Check style, formatting and the import contract
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: setup-test  ## Check types (mypy --strict)
	@$(BIN)/mypy

bench: setup-test  ## Measure the gateway and write docs/results/ (LITELLM=VENV NEMO=VENV: beside others)
	@$(BIN)/python scripts/bench.py
	@$(BIN)/python scripts/overhead.py $(if $(LITELLM),--litellm $(LITELLM)) $(if $(NEMO),--nemo $(NEMO))

clean:  ## Remove .venv, caches and set-up logs; .havengate (your data) stays
	@rm -rf .venv tests/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@rm -f .setup-*
