# make demo: train on MNIST with 8 bits and show the codes. make test: every check and test, and how much they reach.
# Both work in a fresh clone with Python 3.11 or later, git and make; nothing needs root.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WITHOUT ?= .venv-without
DEMO := runs/demo
JOBS ?= 2

.PHONY: demo test check fix without figures clean

demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(BIN)/dsh train --bits 8 --out $(DEMO)
	$(BIN)/dsh table --model $(DEMO) --format table

test: check
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n $(JOBS) --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m tests.support.reference

fix: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m tests.support.reference --fix

# Codes without PyTorch: what without-torch.txt lists, and dsh alone. The tests of this use it where DSH_WITHOUT names it.
without: $(WITHOUT)/installed

$(WITHOUT)/installed: without-torch.txt pyproject.toml
	$(PYTHON) -m venv $(WITHOUT)
	$(WITHOUT)/bin/python -m pip install --quiet -r without-torch.txt
	$(WITHOUT)/bin/python -m pip install --quiet --no-deps -e .
	touch $@

figures: $(DEMO)/metrics.json $(VENV)/installed-dev
	$(BIN)/python benchmarks/figures.py $(DEMO)

$(DEMO)/metrics.json:
	$(MAKE) demo

clean:
	rm -rf $(VENV) $(WITHOUT) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dsh needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/installed
