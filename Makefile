# moebench: `make demo` and `make test` do all their own set-up in .venv; nothing else is needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where the CPU build of torch lies when the configured package index does not have it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
HARDWARE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
STORE ?= runs/demo

export TOKENIZERS_PARALLELISM := false
export VLLM_NO_USAGE_STATS := 1
export OMP_WAIT_POLICY := passive

.PHONY: demo test setup lint types fast laws e2e report perf clean

demo: setup
	$(BIN)/moebench demo --store $(STORE)

test: setup lint types fast laws e2e

setup: $(VENV)/.ready-$(HARDWARE)

$(VENV)/.ready-cpu: requirements/cpu.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/cpu.txt \
	  || $(BIN)/python -m pip install --quiet --no-deps --extra-index-url $(TORCH_INDEX) -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.ready-gpu: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[gpu,dev]"
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not e2e and not laws" tests

laws: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "laws and not e2e" tests

e2e: setup
	$(BIN)/python -m pytest -q -m e2e tests

report: setup
	$(BIN)/moebench report $(STORE) --out $(STORE)/report

perf: setup
	$(BIN)/python -m bench.perf.calibration

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
