# Two commands do everything: `make bench` and `make test`. Each builds its own .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= passive
# Empty: modules are compiled once, also where the shell forbids it (many images do); torch has a thousand of them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: bench test lint build clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: installed again when the metadata or the pins change. Python compiles what is imported, when it is.
$(VENV)/installed-%: pyproject.toml constraints.txt setup.py | $(BIN)/python
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[$*]'
	touch $@

bench: $(VENV)/installed-bench
	$(BIN)/python benchmarks/run.py

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(BIN)/python
	$(BIN)/python -m pip wheel -q --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info
