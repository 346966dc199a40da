# Targets set up what is missing, then do their job. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# make extract: the user's images, or else the sample photographs with untrained weights, offline.
DATA ?=
LAYERS ?= relu4_1
ARGS ?=
RUN ?= outputs/samples
# As typed, through the environment: neither make nor the shell reads a path's quotes and dollars.
export DATA_AS_TYPED := $(value DATA)
export LAYERS_AS_TYPED := $(value LAYERS)
export RUN_AS_TYPED := $(value RUN)

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Where there is an NVIDIA driver, with TensorFlow's CUDA.
READY := $(VENV)/.ready$(if $(shell command -v nvidia-smi)$(wildcard /proc/driver/nvidia/version),-gpu)

.PHONY: help extract layers show test test-slow bench gpu-check check format wheel clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | awk -F '\t' '{ printf "make %-10s %s\n", $$1, $$2 }'

extract: $(READY) ## extract features: [DATA=imgs] [LAYERS=relu4_1,relu5_1] [ARGS="batch_size=8"]
ifeq ($(strip $(value DATA)),)
	@echo "No DATA given: sample photographs, random weights. These weights are untrained; the real ones: make extract DATA=imgs"
	@$(BIN)/python -m pipeline.run data.dir=tests/photographs name=samples network.weights=random "layers=[$$LAYERS_AS_TYPED]" $(ARGS)
else
	@$(BIN)/python -m pipeline.run "data.dir=$$DATA_AS_TYPED" "layers=[$$LAYERS_AS_TYPED]" $(ARGS)
endif

layers: $(VENV)/.ready ## print the table of layers: [ARGS="network=vgg16 data.size=256"]
	@$(BIN)/python -m pipeline.layers $(ARGS)

show: $(VENV)/.ready ## say what a run holds: [RUN=outputs/imgs-vgg19]
	@$(BIN)/python -m pipeline.show "run=$$RUN_AS_TYPED" $(ARGS)

test: $(VENV)/.ready-dev ## run the quick tests
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-slow: $(VENV)/.ready-dev ## run the tests that take minutes
	@$(BIN)/python -m pytest -m slow $(ARGS)

bench: $(VENV)/.ready-bench ## measure against the rivals that are installed: [ARGS="--only network --turns 5"] [ARGS=--list]
	@$(BIN)/python -m tests.benchmarks $(ARGS)

gpu-check: $(READY) ## compare a GPU's numbers with the CPU's and time its stages; small without one: [ARGS="--json FILE"]
	@$(BIN)/python -m tests.gpu_check $(ARGS)

check: $(VENV)/.ready-dev ## format, lint, types, quick tests: what CI runs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

format: $(VENV)/.ready-dev ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

wheel: $(VENV)/.ready-dev ## build a wheel into dist/
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove the environment and what tools left behind
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

$(BIN)/python:
	@echo "setting up $(VENV) with $$($(PYTHON) --version) (once, some minutes)"
	@$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 13), "Python 3.10 to 3.13 is needed: make PYTHON=python3.12 ..."'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "venv is missing: install it (Debian: apt install python3-venv) and try again"; exit 1; }

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	@$(PIP) --editable .
	@touch $@

$(VENV)/.ready-gpu: $(VENV)/.ready
	@echo "an NVIDIA driver is here: installing TensorFlow's CUDA (once, 2 GB)"
	@$(PIP) --editable '.[gpu]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready
	@$(PIP) --editable '.[bench]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/h5py h5py
	@touch $@
