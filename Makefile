# make run          the attack and the defences on digits, in about two minutes
# make test         everything: lint, types, import layers and all tests
# make check        lint, types, import layers and the fast tests (no Flower or Ray processes)
# make test-flower  the tests that meet Flower, with another of the versions that pyproject.toml allows: make test-flower FLOWER=1.41
# make gpu          what is measured on a GPU, the papers' tables included: make gpu DATA=folder of CIFAR-10 as image files
# make docs         the documentation site, into site/; without a network once its packages are installed
# make .venv        only the environment
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# A process of tests per core, at most four: each imports everything and has its own caches. With one more, Ray does not start in time.
CORES := $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 4))')
# Bytecode is kept whatever the environment says: the tests start hundreds of processes that import the same files.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := -m pytest --dist worksteal -n
FLOWER ?= 1.41
OTHER := .venv/flower-$(FLOWER)

.PHONY: run test check lint types fast-tests test-flower gpu docs .venv

run: .venv/.installed
	$(BIN)/fl-sim sweep first_look -o runs

test: lint types
	$(BIN)/python $(PYTEST) $(CORES)

# the types on one core while the tests run on the other
check: lint
	$(MAKE) --no-print-directory --jobs 2 --output-sync types fast-tests

lint: .venv/.complete
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: .venv/.complete
	$(BIN)/basedpyright

fast-tests: .venv/.complete
	$(BIN)/python $(PYTEST) $(CORES) -m 'not slow'

test-flower: .venv/.complete
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OTHER)
	$(BIN)/uv pip install --quiet --python $(OTHER)/bin/python --editable '.[dev]' 'flwr==$(FLOWER).*'
	$(OTHER)/bin/python $(PYTEST) $(CORES) tests/grid tests/strategies/test_catalogue.py tests/launch/test_flower.py tests/launch/test_superlink.py tests/house/test_wheel.py

gpu: .venv/.complete
	$(BIN)/python -m experiments.benchmarks.gpu --papers $(if $(DATA),--data $(DATA))

docs: .venv/.complete
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'the site: site/index.html'

.venv: .venv/.complete

# uv, because pip takes a CPU build of torch that lies about and that torchvision's wheels do not fit; bytecode now, because
# many processes import torch. `make run` does not wait for the optional packages and the test tools.
INSTALL := $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --quiet --editable

.venv/.complete: .venv/.installed
	$(INSTALL) '.[dev]'
	touch $@

.venv/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "expected Python >= 3.11 on the PATH; name one with make PYTHON=/path/to/python"; exit 1; }
	@echo 'Installing into .venv, silently: one to two minutes, several on a busy machine or without cached wheels'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(INSTALL) .
	touch $@
