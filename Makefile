# Every target sets up what it needs; `make demo` and `make test` are the two to know.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready$(if $(HASHED),-hashed)

# Models and corpora come from disk: nothing is fetched but Python packages.
export HF_HUB_OFFLINE := 1

.DELETE_ON_ERROR:
.PHONY: setup test test-slow lint docs demo bench experiments audit fuzz clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt requirements-ci.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "wherefrom needs Python 3.10 or later; '$(PYTHON)' is missing or older." \
	       "Name another one: make PYTHON=python3.11 setup" >&2; exit 1; }
# HASHED=1 (continuous integration): every file that is installed has a hash known beforehand. pip
# compares no hashes of what is installed already, so this begins with an empty environment.
ifdef HASHED
	@$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --require-hashes --no-deps --requirement requirements-ci.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
else
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt hatchling
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation \
	  --editable '.[test,lint,bench,docs]'
endif
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

# Needs the network: advisories are asked of PyPI. A package that it has no answer for is an error.
audit: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation \
	  --editable '.[security]'
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation \
	  --editable '.[fuzz]'
	$(BIN)/python tests/security/fuzz/run.py --seconds $(or $(SECONDS),60)

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find wherefrom tests -name __pycache__ -type d -prune -exec rm -rf {} +
