# Every target sets itself up: a virtual environment in $(VENV) with the package (editable) and its tools, made once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
TORCH ?= torch==2.13.0
GPU_PYTHON ?= python3
OUT ?= out/gpu
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COVERAGE ?= .venv-coverage
# Two workers, each with half of the files; who is done first takes tests from the other.
WORKERS ?= --numprocesses 2 --dist worksteal

.PHONY: demo test test-all bench coverage lint gpu-check gpu-wheels

demo: $(STAMP)
	$(BIN)/galvatron demo

test: export OMP_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-all: export OMP_NUM_THREADS = 1
test-all: $(STAMP)
	$(BIN)/python -m pytest $(WORKERS)

bench: $(STAMP)
	@for script in $(filter-out benchmarks/coverage.py benchmarks/published.py,$(wildcard benchmarks/*.py)); do \
		[ -e "$$script" ] || { echo "there are no benchmarks yet"; exit 0; }; \
		echo "== $$script"; $(BIN)/python "$$script" || exit 1; \
	done

# An hour. In an environment of its own: torchvision from PyPI is compiled for another build of torch than the one for
# the CPU, and other programs could not import transformers beside it.
coverage: $(COVERAGE)/.installed
	$(COVERAGE)/bin/python benchmarks/coverage.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# On a machine with a GPU, torch and transformers, and perhaps without network: what else is missing comes as wheels.
gpu-check:
	$(GPU_PYTHON) benchmarks/gpu.py --out $(OUT)

# For that machine: Linux on x86-64 with Python 3.12.
gpu-wheels:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest .gpu-wheels \
		scipy rich typer click shellingham markdown-it-py mdurl pygments

# torch goes first and alone, at the exact version: a range could pull a newer build with gigabytes of GPU libraries.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev,hf]"
	@touch $@

$(COVERAGE)/.installed: pyproject.toml
	$(PYTHON) -m venv $(COVERAGE)
	$(COVERAGE)/bin/python -m pip install --quiet "$(TORCH)"
	$(COVERAGE)/bin/python -m pip install --quiet --editable ".[coverage]"
	@touch $@
