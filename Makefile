# The two commands are `make demo` and `make test`; the rest is for work on plait itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
BACKENDS := jax torch tensorflow
# The ends of the declared range. pyenv finds its own by PYENV_VERSION; others do without.
PYTHON_lowest ?= PYENV_VERSION=3.11 python3.11
PYTHON_newest ?= PYENV_VERSION=3.13 python3.13
EXTRAS_lowest := jax,torch,tensorflow,cli,test
EXTRAS_newest := jax,tensorflow,hub,cli,test
RANGE := test-lowest-jax test-lowest-tensorflow test-newest-jax
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)
# Backends greet with pages of log; what they say about errors still shows.
export TF_CPP_MIN_LOG_LEVEL ?= 3

# Tests compile many small programs once: XLA's optimiser takes longer than what it saves.
test-jax check $(filter %-jax,$(RANGE)): export XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true

.PHONY: demo test test-slow test-range check lint docs bench bench-gpu clean

demo: $(VENV)/.demo
	KERAS_BACKEND=jax $(BIN)/plait fit data/vowel/train.csv --target vowel --group speaker \
		--test data/vowel/test.csv \
		-o demo/model.keras --report demo/report.html

test: lint $(addprefix test-,$(BACKENDS))

# The command line and what it is made of run on JAX and PyTorch. `make test-slow` runs the rest.
FAST := -m 'not slow'
COMMAND_LINE := cli report tables sklearn plots
# A thread for each worker: more would wait for each other.
$(BACKENDS:%=test-%) test-slow: export OMP_NUM_THREADS ?= 1
test-jax test-torch: export PYTEST_ADDOPTS ?= $(FAST)
test-tensorflow: export PYTEST_ADDOPTS ?= $(FAST) $(COMMAND_LINE:%=--ignore=tests/%)

$(BACKENDS:%=test-%): test-%: $(VENV)/.dev
	KERAS_BACKEND=$* $(PYTEST)

test-slow: $(VENV)/.dev
	KERAS_BACKEND=torch $(PYTEST) -m slow
	KERAS_BACKEND=jax $(PYTEST) -m slow
	KERAS_BACKEND=tensorflow $(PYTEST) -m slow
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not slow" $(COMMAND_LINE:%=tests/%)

test-range: $(RANGE)

$(filter test-lowest-%,$(RANGE)): test-lowest-%: .venv-lowest/.test
	KERAS_BACKEND=$* .venv-lowest/bin/python -m pytest -n $(WORKERS) -m "not slow"

$(filter test-newest-%,$(RANGE)): test-newest-%: .venv-newest/.test
	KERAS_BACKEND=$* .venv-newest/bin/python -m pytest -n $(WORKERS) -m "not slow"

check: lint
	KERAS_BACKEND=jax $(PYTEST) -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Broken links, anchors and docstrings are errors.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

# Where the backends' GPU builds are installed: PYTHON is then their interpreter.
bench-gpu:
	$(PYTHON) -m benchmarks --device gpu --dtype float32 bfloat16

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest site demo/model.keras demo/report.html

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
		f"plait needs Python 3.11 or newer. Received: {v.major}.{v.minor}. Set PYTHON=python3.11, say.")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[jax,cli]' scikit-learn
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[jax,torch,tensorflow,hub,dev]'
	touch $@ $(VENV)/.demo

# The pages of the reference are read from the source: no backend is needed.
$(VENV)/.docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[docs]'
	touch $@

.venv-lowest/.test .venv-newest/.test: .venv-%/.test: pyproject.toml constraints-%.txt
	$(PYTHON_$*) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-$*.txt \
		-e '.[$(EXTRAS_$*)]'
	touch $@
