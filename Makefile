# Every target sets itself up: a virtual environment in $(VENV) with the package (editable) and its tools, made once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all bench lint

demo: $(STAMP)
	$(BIN)/galvatron demo

test: export OMP_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-all: export OMP_NUM_THREADS = 1
test-all: $(STAMP)
	$(BIN)/python -m pytest

bench: $(STAMP)
	@for script in benchmarks/*.py; do \
		[ -e "$$script" ] || { echo "there are no benchmarks yet"; exit 0; }; \
		echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# torch goes first and alone, at the exact version: a range could pull a newer build with gigabytes of GPU libraries.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev,hf]"
	@touch $@
