# `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
PYTEST := -m pytest --quiet --numprocesses auto --dist worksteal

.PHONY: install install-dev demo test test-oldest fast lint bench docs clean

install: $(VENV)/installed

install-dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python $(INSTALL) --editable '.[dev,peers]'
	touch $@

$(OLDEST)/installed: pyproject.toml tests/constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(INSTALL) --constraint tests/constraints-oldest.txt --editable '.[dev,peers]'
	touch $@

demo: install  ## render digits, train a VAE for two minutes, draw its pictures
	$(BIN)/genssl demo

test: install-dev lint  ## everything, the slow tests too; a peer that is missing fails
	GENSSL_REQUIRE_PEERS=1 OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m ''

test-oldest: $(OLDEST)/installed  ## the tests of `make test` with the oldest versions that pyproject.toml allows
	GENSSL_REQUIRE_PEERS=1 OMP_NUM_THREADS=1 $(OLDEST)/bin/python $(PYTEST) -m ''

fast: install-dev  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install-dev  ## measure against the course's plain code and other libraries, side by side
	$(BIN)/python $(INSTALL) --editable '.[bench]'
	$(BIN)/python -m benchmarks

docs: install-dev  ## write the reference of all commands again, and the site: build/site/index.html
	$(BIN)/python -m tests.command_reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info
