# Every target makes the virtual environment when it is missing or out of date.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
WORKDIR ?= /tmp/splitjax/demo
TESTS ?= tests

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST = $(BIN)/python -m pytest -n $(WORKERS)

DEMO = --config=configs/sft_stsb.py --config.mode=processes --config.compare=True \
	--config.fit_steps=0 --config.score_on="('dev',)"
ifdef SMALL
DEMO += --config.steps=20
endif

.PHONY: help install data demo test exact slow doctest lint format clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP)  ## make .venv with splitjax and its tests' needs

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
	touch $@

data: $(STAMP)  ## fetch the pinned weights and data into the cache
	$(BIN)/python -m splitjax.data.fetch --all

demo: $(STAMP)  ## MiniLM cut into two processes, and un-split (SMALL=1: 20 steps)
	$(BIN)/python -m splitjax.data.fetch minilm stsb snli rotten_tomatoes
	$(BIN)/python -m experiments.finetune $(DEMO) --workdir=$(WORKDIR)

test: $(STAMP)  ## the fast tests
	$(PYTEST) -m 'not slow' $(TESTS)

# The others compile quickly (tests/conftest.py); these hold as users compile, too.
EXACT = laws/test_algorithm.py runtime/test_edge.py
exact: $(STAMP)  ## the tests of equality, compiled with every optimization
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m 'not slow' $(addprefix tests/,$(EXACT))

slow: $(STAMP)  ## the slow tests
	$(PYTEST) -m slow --durations=20 $(TESTS)

doctest: $(STAMP)  ## every example in a docstring
	$(PYTEST) --doctest-modules splitjax

lint: $(STAMP)  ## style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/python .ci/tidy.py

format: $(STAMP)  ## rewrite in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the targets above made here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
