# `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test fast lint bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: install  ## render digits, train a VAE for two minutes, draw its pictures
	$(BIN)/genssl demo

test: install lint  ## everything, the slow tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses auto -m ''

fast: install  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses auto

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## measure against the course's plain code and other libraries, side by side
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info
