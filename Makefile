# Every target does all its own set-up: a machine with Python 3.11 or newer is enough.
#
#   make PYTHON=python3.12 ...    another Python to make .venv with
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu ...    torch without CUDA: a tenth of the download (first run,
#                                                                or after make clean)

PYTHON ?= python3
TORCH_INDEX ?=

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CODE := src tests docs $(wildcard benchmarks)
# optimizers.py measures beside no one: it makes a page of the docs, in an hour.
BENCHMARKS := $(filter-out benchmarks/harness.py benchmarks/optimizers.py,$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint bench docs clean

help: ## list the targets
	@echo "Each sets up what it needs in .venv on its first run."
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.run ## train the 2017 Transformer to translate phrases, show its score and its report: runs/demo
	@echo "* training on phrases made from locale data, English to French; then the score and the report"
	@test ! -e runs/demo/report.html || rm -rf runs/demo  # one that was interrupted goes on
	@$(BIN)/regard train translate --out runs/demo --resume
	@$(BIN)/regard evaluate runs/demo

test: .venv/.dev ## run the tests: some twenty minutes on two cores
	@echo "* running the tests"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow"

slow: .venv/.dev ## run the exhaustive tests too, and every command in the docs
	@echo "* running all tests, the slow ones too"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: .venv/.dev ## check style, types, and which room imports which
	@echo "* checking style (ruff), types (mypy) and imports (import-linter)"
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/ruff format --quiet --check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: .venv/.bench ## measure beside peers, one JSON line a measurement
	@echo "* running $(words $(BENCHMARKS)) benchmarks" >&2
	@set -e; for file in $(BENCHMARKS); do $(BIN)/python $$file; done

docs: .venv/.dev ## build the site into site/
	@echo "* building the site: open site/index.html"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean: ## remove .venv and everything else that the targets made, but not runs/
	@echo "* removing .venv, site and caches"
	@rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# A stamp for each stage of the set-up, so that only the first run takes time.

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "regard needs Python 3.11 or newer: make PYTHON=...")'
	@echo "* making .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	@touch $@

.venv/.run: .venv/.made pyproject.toml constraints.txt
	@echo "* installing torch, which is large, by its pin"
	@$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "* installing regard and what else it needs"
	@$(INSTALL) -e .
	@touch $@

.venv/.dev: .venv/.run
	@echo "* installing the tools for tests, checks and docs"
	@$(INSTALL) -e '.[hub,parquet,search,tune]' --group test --group lint --group docs
	@touch $@

.venv/.bench: .venv/.dev
	@echo "* installing the peers to measure beside"
	@$(INSTALL) --group bench
	@touch $@
