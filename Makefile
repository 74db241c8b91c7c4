# Each target makes and fills .venv by itself. PYTHON=python3.12 make ... picks the interpreter.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test gate slow nightly fire lint format docs golden clean

quickstart: .venv/train ## Run the quickstart suite and print its leaderboard
	$(BIN)/ablate run quickstart
	$(BIN)/ablate leaderboard quickstart

test: .venv/dev ## Run the default tests
	$(BIN)/python -m pytest -n auto

gate: .venv/dev ## Hold this code against the committed baseline
	$(BIN)/ablate check ci --baseline results/baselines/ci-cpu.json

slow: .venv/dev ## Run the tests that take longer: planted bugs, planted effects, processes killed at any step
	$(BIN)/python -m pytest -n auto -m "slow and not nightly"

nightly: .venv/dev ## Run the longest: every shipped suite trained, whole checks of planted changes, benchmarks
	$(BIN)/python -m pytest -n auto -m nightly

fire: .venv/dev ## Run the tests that kill runs, start Ray repeatedly or build packages
	$(BIN)/python -m pytest -m fire

lint: .venv/dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/dev ## Put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/dev ## Write the generated tables of the README
	$(BIN)/python tests/readme.py

golden: .venv/dev ## Keep this platform's losses of every variant, after a change that should change them
	$(BIN)/python tests/golden.py

clean: ## Remove .venv and what the tools leave behind
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks

.venv/pip: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("ablate needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/train: .venv/pip
	$(INSTALL) -e '.[train]'
	@touch $@

.venv/dev: .venv/pip
	$(INSTALL) -e '.[train,dev]'
	@touch $@ .venv/train
