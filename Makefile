# make run    the attack and the defences on digits, in about two minutes
# make test   lint, types and all tests
# make .venv  only the environment
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: run test .venv

run: .venv/.complete
	$(BIN)/fl-sim sweep experiments/studies/first_look.toml -o runs

test: .venv/.complete
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest

.venv: .venv/.complete

# uv, because pip takes a CPU build of torch that lies about and that torchvision's wheels do not fit; bytecode now, because
# many processes import torch.
.venv/.complete: pyproject.toml
	@test -n "$(PYTHON)" || { echo "expected Python >= 3.11 on the PATH; name one with make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --quiet --editable '.[dev]'
	touch $@
