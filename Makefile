# Every target makes .venv and installs what it needs when that is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRA ?= cpu
TORCH ?= torch==2.13.0
# The CPU build of torch has its own index; tried briefly, so that a machine that has the wheel already goes on.
TORCH_INDEX ?= $(if $(filter cpu,$(EXTRA)),--extra-index-url https://download.pytorch.org/whl/cpu)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

OF_VERIFIERS := tests/faults/verifiers tests/faults/test_faults_verifier_pool.py

.PHONY: help setup quickstart test nightly unit verifiers faults engines methods extras lint bench chaos clean

help:            ## show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(VENV)/.ready  ## make .venv and install everything (EXTRA=cpu, the default, or EXTRA=gpu)

# torch first, with the lock's versions of what it needs: where its own pins and the lock disagree, pip says so here.
# deepspeed last and without build isolation, as it imports torch while it builds. It asks there whether each of its
# kernels could be compiled, DS_BUILD_OPS=0 or not, which is an error on a GPU machine without nvcc; not of its CPU ones.
$(VENV)/.ready: requirements/$(EXTRA).lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --retries 1 --timeout 20 $(TORCH_INDEX) --constraint requirements/$(EXTRA).lock $(TORCH) setuptools==80.9.0 wheel
	$(PIP) install --quiet --no-deps -r requirements/$(EXTRA).lock
	DS_ACCELERATOR=cpu DS_BUILD_OPS=0 $(PIP) install --quiet --no-deps --no-build-isolation deepspeed==0.19.8
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $@

quickstart: $(VENV)/.ready  ## the main job: warm a small model up, train it with GRPO, show the difference
	$(BIN)/rlpost train configs/quickstart.yaml

# Tests of verifiers mostly wait, so they run beside those that compute; those of runs that are broken follow them.
test: lint unit  ## all tests: unit; then verifiers and faults, beside integration and methods
	$(MAKE) --no-print-directory --jobs=2 faults engines

verifiers: $(VENV)/.ready  ## the tests of verifiers (minutes)
	$(BIN)/python -m pytest -n 3 tests/verify $(OF_VERIFIERS)

faults: verifiers  ## the tests of verifiers, and runs that are killed, stopped and resumed (many minutes)
	$(BIN)/python -m pytest -m "not long" tests/faults $(OF_VERIFIERS:%=--ignore=%)

# Files start engines and share them within.
engines: $(VENV)/.ready  ## the tests of integration and of methods (many minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not long" tests/integration tests/methods

nightly: methods  ## what takes longer than `make test` may: every method, tests/nightly, and the long tests
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/nightly
	$(BIN)/python -m pytest -n 2 --dist loadfile -m long tests/integration tests/faults

unit: $(VENV)/.ready  ## the unit tests alone (seconds)
	$(BIN)/python -m pytest -n 2 tests/unit

methods: $(VENV)/.ready  ## five real steps of every file in configs/methods (`make test` runs four of them)
	RLPOST_METHODS=all $(BIN)/python -m pytest tests/methods

extras: $(VENV)/.ready  ## install wandb and mlflow and test their sinks offline
	$(PIP) install --quiet wandb mlflow
	$(BIN)/python -m pytest tests/extras

lint: $(VENV)/.ready  ## ruff format and check, mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.ready  ## seconds per step against TRL and the floor
	$(BIN)/python benchmarks/step.py

DURATION ?= 1200
SEED ?= 0
chaos: $(VENV)/.ready  ## the quickstart under a supervisor while things break at random (DURATION=1200 seconds, SEED=0)
	$(BIN)/python benchmarks/chaos.py --duration $(DURATION) --seed $(SEED)

clean:           ## remove .venv and caches, not the runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
