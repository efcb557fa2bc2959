# The only commands a reader needs: `make book` and `make test`. Both use the environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STRICT ?=
PYTEST_ARGS ?=

# two processes share the work; more threads in each would only fight for the cores
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help env book test check site-test clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 8
	@echo "Settings: PYTHON=python3.12 (interpreter), STRICT=1 (book: warnings are errors), PYTEST_ARGS='-k linear' (test)"

env: $(STAMP)  ## create .venv with everything the book and the tests need

book: $(STAMP)  ## run every chapter, build the book, print its address
	$(BIN)/python tools/build_book.py $(if $(STRICT),--strict)

test: $(STAMP)  ## run all tests, the chapters in small among them
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

check: $(STAMP)  ## lint, format and types (for contributors): ruff, then mypy --strict over the whole package
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy --strict tpgm

site-test: $(STAMP)  ## walk the built book in headless Chromium (must be installed, with chromedriver)
	TPGM_BROWSER=1 $(BIN)/python -m pytest tests/test_site.py $(PYTEST_ARGS)

clean:  ## remove the built book and caches; the environment stays
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Without ensurepip (some Linux distributions split it off) the interpreter's own pip fills the environment.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; choose one with: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) 2>/dev/null || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -q pip; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[book,test]'
	@touch $@
