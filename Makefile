# make setup once; make check before a commit; make test for everything; make bench for speed,
# with arguments as in make bench ARGS="--stage tuning --json speed.json".
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
TORCH := $(shell grep '^torch==' constraints.txt)
PIP := $(BIN)/python -m pip install -c constraints.txt

.PHONY: setup demo test check bench format clean

setup: $(DEV)

# Each runs again only when what is to be installed changed; the demo needs less than the tests.
$(RUN): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) -e .
	touch $@

$(DEV): $(RUN)
	$(PIP) -e ".[dev,eval,app]"
	touch $@

demo: $(RUN)
	$(BIN)/weightdiff demo

test: $(DEV)
	$(BIN)/python -m pytest

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow" -x -q

bench: $(RUN)
	$(BIN)/python -m benchmarks.speed $(ARGS)

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
