# On a fresh machine: `make quickstart` shows the whole chain, `make test` runs the tests. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
CLIENTS ?= .venv-clients
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= quickstart
FUZZ_INPUTS ?= 100000
FUZZ_SEED ?= 0

.PHONY: help setup quickstart test test-lowest test-clients fuzz check format types clean

help:
	@echo "make quickstart   set up, then run the whole chain into $(OUT)/"
	@echo "make test         set up, then run the tests"
	@echo "make test-lowest  the quick tests with the lowest versions of all that the package needs, in $(LOWEST)"
	@echo "make test-clients the programs that load exported files, installed into $(CLIENTS), on files of ours"
	@echo "make fuzz         read FUZZ_INPUTS=$(FUZZ_INPUTS) damaged files, and print what became of them by format"
	@echo "make check        format, lint, types and tests: what a change must pass"
	@echo "make format       format and mend what can be mended"
	@echo "make setup        set up $(VENV) alone"

setup: $(READY)

$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e '.[dev]'
	touch $(READY)

quickstart: $(READY)
	$(BIN)/distill quickstart --out $(OUT)

test: $(READY)
	$(BIN)/python -m pytest

# With the oldest Python that setup.cfg allows: make test-lowest PYTHON=python3.10
test-lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --upgrade pip
	$(LOWEST)/bin/python -m pip install -c tests/lowest.txt -e '.[dev]'
	$(LOWEST)/bin/python -m pytest -m "not slow"

# samexporter asks for one version of torch, which its code for exported files does not use.
test-clients:
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -e '.[dev,export,openvino,clients]'
	$(CLIENTS)/bin/python -m pip install --no-deps samexporter
	QT_QPA_PLATFORM=offscreen $(CLIENTS)/bin/python -m pytest tests/export/test_layouts.py -rs

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz.run --inputs $(FUZZ_INPUTS) --seed $(FUZZ_SEED)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) types
	$(BIN)/python -m pytest

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(READY)
	$(BIN)/mypy -p distill

clean:
	rm -rf $(VENV) $(LOWEST) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
