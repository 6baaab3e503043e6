# `make demo` and `make test` work on a fresh checkout: they make .venv themselves, once.
# Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BIN_HPU := .venv-hpu/bin
INSTALLED_HPU := .venv-hpu/.installed
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Where the environment forbids bytecode, each of the many processes here would compile torch and all else anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo reproduce-tables test test-fast test-hpu lint format typecheck smoke docs figures dist clean

help:  ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-19s %s\n", $$1, $$2 }'

install: $(INSTALLED)  ## make .venv with the package and the developers' tools, at the versions of constraints.txt

demo: $(INSTALLED)  ## train, score and caption at toy size on generated data; results in demo/
	$(BIN)/avcap demo --out demo

reproduce-tables: $(INSTALLED)  ## the papers' tables: what data and weights allow, and toy models; in runs/reproduce
	$(BIN)/avcap reproduce

test: lint typecheck  ## lint, types, then every test, in two processes
	$(PYTEST)

test-fast: $(INSTALLED)  ## the tests that take less than ten seconds each
	$(PYTEST) -m "not slow"

test-hpu: $(INSTALLED_HPU)  ## Gaudi on a stand-in, with this Lightning and with the last that had its own accelerator
	AVCAP_TEST_HPU=1 $(PYTEST) tests/hpu
	AVCAP_TEST_HPU=1 $(PYTEST:$(BIN)/%=$(BIN_HPU)/%) tests/hpu tests/unit/accelerators tests/unit/backbones/test_language.py

lint: $(INSTALLED)  ## ruff: rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy src tests

smoke: $(INSTALLED)  ## two training steps of LAVCap at toy size
	$(BIN)/lightning fit -c configs/tiny/lavcap.yaml -c configs/tiny/smoke.yaml

docs: $(INSTALLED)  ## the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict --quiet

figures: $(INSTALLED)  ## the pictures of README and docs, from small models that are trained first, in runs/figures
	$(BIN)/python docs/figures.py

dist: $(INSTALLED)  ## source archive and wheel in dist/
	$(BIN)/python -m build --outdir dist .

clean:  ## remove what make made; data, runs and checkpoints stay
	rm -rf .venv .venv-hpu build dist demo site src/avcap_zoo.egg-info .mypy_cache .ruff_cache .pytest_cache
	find src data_modules tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Touched last, so that an interrupted install is taken up again and a finished one is left alone.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else f"avcap-zoo needs Python 3.10 to 3.13, found {v[0]}.{v[1]}: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@echo "Installing into .venv; the first time this fetches torch, some gigabytes, and takes minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -qq -c constraints.txt -e ".[dev,app]"
	@touch $@

# On top of .venv, so that torch and all else that both hold are there once.
$(INSTALLED_HPU): $(INSTALLED) constraints-hpu.txt
	$(BIN)/python -m venv .venv-hpu
	$(BIN)/python -c '$(SITE)' > "$$($(BIN_HPU)/python -c '$(SITE)')/above.pth"
	$(BIN_HPU)/python -m pip install --disable-pip-version-check --no-compile -qq -c constraints-hpu.txt -e ".[dev,hpu]"
	@touch $@
