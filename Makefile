# Everything runs in .venv; installing is repeated only when the pinned set or pyproject changes.
# uv installs it where there is one (`make UV=` does without), else pip; both from the same file.
PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null)
# Packages are installed without bytecode: the first command that imports a file writes its own.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
INSTALLED := .venv/.installed
CUDA := .venv-cuda
DOCS := .venv-docs
STORES := .stores
STDLIB = $(shell $(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['stdlib'])")

ifneq ($(UV),)
# uv reads none of pip's settings.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_EXTRA_INDEX_URL
export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
endif
THIS_PYTHON = $(shell $(PYTHON) -c "import sys; print(sys.executable)")
venv = $(UV) venv -q --no-project --allow-existing --seed --python "$(THIS_PYTHON)" $(1)
packages = $(UV) pip install -q --python $(1)/bin/python
else
venv = $(PYTHON) -m venv $(1)
# Compiling every file is half of pip's work, and most are never imported.
packages = $(1)/bin/pip install --no-compile --disable-pip-version-check --progress-bar off -q
endif

.PHONY: install quickstart test lint types check wheel versions accelerators stores docs clean

install: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" \
		|| { echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(call venv,.venv)
	$(call packages,.venv) -r requirements.txt
	$(call packages,.venv) --no-deps -e .
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

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

check: lint types test

# dist/: what goes to PyPI. The wheel is made from the sdist, so that neither needs this folder.
wheel: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -I -m build --no-isolation --outdir dist

# The oldest and the newest dependencies, on each Python, or on ONLY='3.12-*' (docs/versions.md).
versions:
	$(PYTHON) tests/versions.py $(if $(ONLY),--only '$(ONLY)')

# What a GPU would get, in an environment that compiles for one; no GPU is needed.
accelerators: $(INSTALLED) $(CUDA)/.installed
	JAX_PLATFORMS=cpu $(CUDA)/bin/pytest -m cuda
	$(BIN)/python benchmarks/accelerators.py --python $(CUDA)/bin/python

$(CUDA)/.installed: requirements.txt requirements-cuda.txt pyproject.toml
	$(call venv,$(CUDA))
	$(call packages,$(CUDA)) -r requirements-cuda.txt
	$(call packages,$(CUDA)) --no-deps -e .
	@touch $(CUDA)/.installed

# Input from object stores: servers of S3 and of Google Cloud Storage, whose answers are broken on the
# way.
stores: $(INSTALLED) $(STORES)/.installed
	PYTHONPATH=$(CURDIR)/$(STORES) $(BIN)/pytest tests/light_llm/preprocess/test_remote_*.py

$(STORES)/.installed: requirements-stores.txt
	rm -rf $(STORES)
	$(call packages,.venv) --no-deps --target $(STORES) -r requirements-stores.txt
	@touch $(STORES)/.installed

# The docs as a site, in build/site, from an environment of its own; a broken link is an error.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(DOCS)/.installed: requirements-docs.txt
	$(call venv,$(DOCS))
	$(call packages,$(DOCS)) -r requirements-docs.txt
	@touch $(DOCS)/.installed

clean:
	rm -rf build/site data/quickstart checkpoints/quickstart .pytest_cache .ruff_cache .mypy_cache .hypothesis
