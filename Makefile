SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-slurm check-style

PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake --configfile config/demo.yaml

help:
	@echo "make demo       set up .venv and run the whole chain on the miniature dataset (CPU, about half an hour)"
	@echo "make test       set up .venv and run the tests (CPU, about 15 minutes at most)"
	@echo "make test-slow  the slower tests: the workflow for real, killed and resumed"
	@echo "make test-slurm the cluster profile on a real SLURM on this machine, as root (about 10 minutes)"
	@echo "make check-style  ruff and snakefmt"

# The environment, from the lock; made anew when the lock changes.
.venv/made: envs/lock.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed (name it with make PYTHON=...)"; exit 1; }
	@echo "== environment: $(PYTHON) with the locked packages in .venv (about 7 GB, a minute or two)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r envs/lock.txt
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python -e .
	@touch $@

data/miniature: | .venv/made
	@echo "== miniature dataset"
	$(BIN)/seas miniature $@

demo: .venv/made data/miniature
	@echo "== the chain: split, generator, rmp, generation, metrics, downstream, report"
	$(SNAKEMAKE)
	@echo "== done; worth opening:"
	@echo "   results/report/index.html    the whole report, one page"
	@echo "   results/report/figures/      contact sheets, loss curves, precision-recall curves"
	@echo "   results/metrics.json         every number"

test: .venv/made
	@echo "== tests (the slower ones: make test-slow)"
	$(BIN)/python -m pytest -m "not slow" --durations=10
	@echo "== done; worth opening: tests/ (what is promised), README.md (how it is used)"

test-slow: .venv/made
	@echo "== slower tests"
	$(BIN)/python -m pytest -m slow --durations=10

test-slurm: .venv/made
	@echo "== a SLURM on loopback (SEAS_REQUIRE_SLURM=1 installs its packages, and nothing is skipped)"
	$(BIN)/python -m pytest -m slurm --durations=10

check-style: .venv/made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
