# moebench: `make demo` and `make test` do all their own set-up in .venv; nothing else is needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where the CPU build of torch lies when the configured package index does not have it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
HARDWARE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
STORE ?= runs/demo
# Without notices that nobody can act on: a new release of pip, being root in a container.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore

export TOKENIZERS_PARALLELISM := false
export VLLM_NO_USAGE_STATS := 1
export OMP_WAIT_POLICY := passive

# What each part of `make test` took, told after the part and again at the end.
TIMES := $(VENV)/times.txt
timed = $(BIN)/python tests/support/timed.py "$(1)" $(TIMES)
PYTEST := $(BIN)/python -m pytest -q

.PHONY: demo test setup lint types suite fast laws e2e mutations report papers docs perf clean

demo: setup
	$(BIN)/moebench demo --store $(STORE)

test: setup
	@: > $(TIMES)
	@$(MAKE) --no-print-directory lint types suite e2e
	@echo; echo "Time of each part:"; cat $(TIMES)

setup: $(VENV)/.ready-$(HARDWARE)

$(VENV)/.ready-cpu: requirements/cpu.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps -r requirements/cpu.txt 2> $(VENV)/pip.log \
	  || $(PIP) --no-deps --extra-index-url $(TORCH_INDEX) -r requirements/cpu.txt
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.ready-gpu: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[gpu,dev]"
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(call timed,types) $(BIN)/mypy

# The fast suite and the laws together: two workers start once, and neither waits for the other in between.
suite: setup
	OMP_NUM_THREADS=1 $(call timed,fast suite and laws) $(PYTEST) -n 2 --dist worksteal -m "not e2e" tests

fast: setup
	OMP_NUM_THREADS=1 $(call timed,fast suite) $(PYTEST) -n 2 --dist worksteal -m "not e2e and not laws and not thorough" tests

laws: setup
	OMP_NUM_THREADS=1 $(call timed,laws) $(PYTEST) -n 2 --dist worksteal -m "laws and not e2e" tests

e2e: setup
	OMP_NUM_THREADS=1 $(call timed,end to end) $(PYTEST) -m e2e tests

# Defects planted one at a time in a copy of the tree: how many of them the suite catches.
mutations: setup
	$(BIN)/python -m tests.support.mutations

report: setup
	$(BIN)/moebench report $(STORE) --out $(STORE)/report

# Every table and figure of the papers on the pocket models; a second call finds the runs in the store.
papers: setup
	for paper in holistic moe_i2 diversifying field; do \
	  OMP_NUM_THREADS=1 $(BIN)/moebench paper $$paper all --store runs/papers --out docs/papers --track disabled || exit 1; done

# The documentation as a site, in build/docs/site; a warning is an error.
docs: setup $(VENV)/.ready-docs
	$(BIN)/python -m bench.site build/docs/source
	PYTHONPATH=$(VENV)/docs $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs -d build/docs/trees \
	  build/docs/source build/docs/site
	@echo "the site begins with build/docs/site/index.html"

# Beside the environment, not in it: what builds the site never decides about what moebench runs with.
$(VENV)/.ready-docs: requirements/docs.txt
	rm -rf $(VENV)/docs
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/docs -r requirements/docs.txt
	touch $@

perf: setup
	$(BIN)/python -m bench.perf.calibration

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
