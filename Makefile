# Every target sets up what it needs; `make demo` and `make test` are the two to know.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Models and corpora come from disk: nothing is fetched but Python packages.
export HF_HUB_OFFLINE := 1

.DELETE_ON_ERROR:
.PHONY: setup test test-slow lint docs demo bench experiments clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "wherefrom needs Python 3.10 or later; '$(PYTHON)' is missing or older." \
	       "Name another one: make PYTHON=python3.11 setup" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hatchling
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation \
	  --editable '.[test,lint,bench,docs]'
	@touch $@

test: $(READY)
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict wherefrom
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/mkdocs build --strict

demo: $(READY)
	$(BIN)/wherefrom demo

bench: $(READY)
	$(BIN)/python -m benchmarks.run

experiments: $(READY)
	$(BIN)/python -m benchmarks.experiments

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find wherefrom tests -name __pycache__ -type d -prune -exec rm -rf {} +
