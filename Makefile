# Everything works on a fresh clone with Python ≥ 3.11, pip and make alone. `make demo` and `make test` do their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Which build of torch a new .venv gets: auto (the CPU build where no NVIDIA GPU is visible), cpu, default (as pip is set up; from
# PyPI the CUDA build) or the URL of an index that holds it. A torch that is there is kept.
TORCH ?= auto
# Further options of pip install, as an index of your own.
PIP_OPTIONS ?=
INSTALLED := $(VENV)/.installed

.PHONY: install demo test lint types gate fuzz chaos clean help

help:
	@echo "make demo     set up, train on six synthetic tasks in order, print the table, write runs/demo/report.html"
	@echo "make test     set up, style, types, tests"
	@echo "make gate     the tests and those too slow for every change"
	@echo "make install  set up alone; TORCH=cpu, default or the URL of an index chooses the build of torch"
	@echo "make fuzz     20,000 damaged inputs through every reader of raw data"
	@echo "make chaos    break a run in 100 random ways; after each the same command has to end with the same bits"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt .ci/install
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" PIP_OPTIONS="$(PIP_OPTIONS)" .ci/install $(VENV)
	@touch $(INSTALLED)

demo: install
	$(BIN)/dist-teracon train configs/demo.yaml --run runs/demo

# Processes that run tests, each a file at a time; a test itself takes one thread, or two processes. Files run in the order of their
# names: those of whole runs, of few tests and minutes, come first, and no process is left alone with one at the end.
# Compiled modules are kept, whatever the environment says: many tests start processes that import this package.
TEST_WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test: install lint types
	$(PYTEST) -m "not slow and not gpu"

gate: install lint types
	$(PYTEST) -m "not gpu"

# damaged inputs for every format of raw data: FUZZ_INPUTS of them, from another seed each time it is given
FUZZ_INPUTS ?= 20000
FUZZ_SEED ?= 0
fuzz: install
	$(BIN)/python tests/fuzz/sources.py --inputs $(FUZZ_INPUTS) --seed $(FUZZ_SEED)

# faults at random points of a run of six stages: POINTS of them, others with another CHAOS_SEED; CHAOS_OPTIONS="--from 0 --to 50" does
# a part of them, and --faults, --small and --folder are those of the program
POINTS ?= 100
CHAOS_SEED ?= 0
CHAOS_OPTIONS ?=
chaos: install
	$(BIN)/python tests/chaos/chaos.py --points $(POINTS) --seed $(CHAOS_SEED) $(CHAOS_OPTIONS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The type checker sees the packages where they are installed: kernels, launch and configs below dist_teracon.
types: install
	rm -rf .build/types && mkdir -p .build/types/dist_teracon
	ln -s $(CURDIR)/dist_teracon/* .build/types/dist_teracon/
	for package in kernels launch configs; do ln -s $(CURDIR)/$$package .build/types/dist_teracon/$$package; done
	cd .build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p dist_teracon

clean:
	rm -rf .build build *.egg-info .mypy_cache .ruff_cache .pytest_cache
