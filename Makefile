# Everything runs in .venv. `make install` is repeated only when a pinned set or pyproject changes.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install quickstart test check clean

install: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" \
		|| { echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(INSTALLED)

quickstart: $(INSTALLED)
	$(BIN)/python -m tests.quickstart

test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadfile

check: test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf data checkpoints .pytest_cache .ruff_cache .mypy_cache .hypothesis
