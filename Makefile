# Needs Python >= 3.11 and make; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# With HARDY_DATA set (a folder of .npz files or of torchvision's own layouts) the tests on real data run as well.
MARKERS := $(if $(HARDY_DATA),-m "not slow and not gpu",)

.PHONY: help setup demo test check slow lint format bench clean

help:
	@echo "make demo    set up, train and evaluate small nets on embedded data, write hardy-demo/report.html"
	@echo "make test    set up with the test tools, run the fast tests"
	@echo "make check   lint, types, layers, fast tests"
	@echo "make slow    the slow tests: compiler, browsers, big nets"
	@echo "make bench   the speed benchmarks"

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Hardy needs Python 3.11 or newer: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(BIN)/python pyproject.toml
	@echo "installing Hardy and PyTorch into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"  # knows --group
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

setup: $(VENV)/.dev

demo: $(VENV)/.runtime
	$(BIN)/hardy demo

# one thread: the tensors of the tests are small, and threads that wait for each other make a busy machine crawl
test slow: export OMP_NUM_THREADS ?= 1

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(MARKERS)

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.runtime
	$(BIN)/python benchmarks/speed/startup.py
	$(BIN)/python benchmarks/speed/method_step.py
	$(BIN)/python benchmarks/speed/data_pipeline.py

clean:
	rm -rf $(VENV) build dist hardy-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
