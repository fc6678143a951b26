# Everything runs in .venv; installing is repeated only when the pinned set or pyproject changes.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
CUDA := .venv-cuda
DOCS := .venv-docs
STDLIB = $(shell $(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['stdlib'])")

.PHONY: install quickstart test check accelerators docs clean

install: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" \
		|| { echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -q -r requirements.txt
	$(BIN)/pip install --disable-pip-version-check -q --no-deps -e .
	@touch $(INSTALLED)

# Text -> shards -> JAX training -> loss curve -> PyTorch, on the Python standard library's source.
quickstart: $(INSTALLED)
	$(BIN)/llm-preprocess --input "$(STDLIB)" --include '*.py' \
		--exclude site-packages --exclude 'test*' --exclude 'idle*' --exclude lib2to3 \
		--vocab-size 2048 --val-fraction 0.05 --shuffle-seed 0 --output data/quickstart --overwrite
	rm -rf checkpoints/quickstart
	$(BIN)/llm-train configs/quickstart.yaml
	$(BIN)/python benchmarks/quickstart.py
	$(BIN)/llm-run --checkpoint checkpoints/quickstart/best --seed 0 --max-tokens 120 \
		--prompt "def read(self, size=-1):"

test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadfile

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

# What a GPU would get, in an environment that compiles for one; no GPU is needed.
accelerators: $(INSTALLED) $(CUDA)/.installed
	JAX_PLATFORMS=cpu $(CUDA)/bin/pytest -m cuda
	$(BIN)/python benchmarks/accelerators.py --python $(CUDA)/bin/python

$(CUDA)/.installed: requirements.txt requirements-cuda.txt pyproject.toml
	$(PYTHON) -m venv $(CUDA)
	$(CUDA)/bin/pip install --disable-pip-version-check --progress-bar off -q -r requirements-cuda.txt
	$(CUDA)/bin/pip install --disable-pip-version-check -q --no-deps -e .
	@touch $(CUDA)/.installed

# The docs as a site, in build/site, from an environment of its own; a broken link is an error.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(DOCS)/.installed: requirements-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --disable-pip-version-check --progress-bar off -q -r requirements-docs.txt
	@touch $(DOCS)/.installed

clean:
	rm -rf build/site data/quickstart checkpoints/quickstart .pytest_cache .ruff_cache .mypy_cache .hypothesis
