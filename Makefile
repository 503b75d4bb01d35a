# `make demo` and `make test` do all the set-up by themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# MARKERS selects test groups: empty runs everything (CI), the default leaves out the slow ones.
MARKERS ?= not opinfo and not programs

.PHONY: help demo test lint bench format clean
help:
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP) ## train a small Qwen3 on a virtual Zhenwu 810E (under 5 minutes, set-up included)
	$(BIN)/offramp train

test: $(STAMP) ## the default test suite; MARKERS= runs every group
	$(BIN)/python -m pytest -m "$(MARKERS)"

lint: $(STAMP) ## ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror src/offramp/device/native/*

format: $(STAMP) ## apply ruff's fixes and both formatters
	$(BIN)/clang-format -i src/offramp/device/native/*
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## every benchmark; figures go to bench/RESULTS.md by hand, with the machine
	for script in bench/*.py; do $(BIN)/python $$script || exit 1; done

clean: ## remove the environment and what tools leave behind
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
