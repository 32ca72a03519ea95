# Needs Python 3.11+, make and gcc; everything else is installed here, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-header --no-annotate --extra build

# Not offered as wheels; lm-eval asks for them in tasks that are none of ours.
SOURCE_ONLY := rouge-score sqlitedict word2number

.PHONY: install rehearse test fast harness e2e long mutants lint schema lock clean

# Wheels only: what a source distribution does while it is built, no hash pins.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all:
# Compiled by hand: an editable install is not, and starting the program would pay for it. The
# other three are links in the first, which are not followed.
COMPILE = $(BIN)/python -m compileall -q runbook steps templates env

$(VENV)/.ready: pyproject.toml env/requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes --no-deps -r env/requirements.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	$(COMPILE)
	touch $@

$(VENV)/.dev: $(VENV)/.ready env/requirements-dev.txt
	$(INSTALL) --require-hashes --no-deps -r env/requirements-dev.txt
	touch $@

# The program only; it needs this folder.
install: $(VENV)/.ready
	@echo 'installed: $(abspath $(BIN)/runbook)'
	@echo 'put it on PATH:  mkdir -p ~/.local/bin && ln -sf $(abspath $(BIN)/runbook) ~/.local/bin/runbook'
	@case ":$$PATH:" in *":$$HOME/.local/bin:"*) ;; *) echo '          and:  export PATH="$$HOME/.local/bin:$$PATH"' ;; esac

# The whole way on a machine without a GPU: a served and smoke-tested model on 127.0.0.1.
rehearse: $(VENV)/.ready
	@$(BIN)/runbook run rehearsal $(if $(PORT),--set port=$(PORT))

test: fast harness e2e

# Tests start thousands of programs: none of them is to compile what it imports.
fast harness e2e long: export PYTHONDONTWRITEBYTECODE =

# One worker more than cores, because some tests wait for a process or a server.
fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --dist worksteal -m "not harness and not e2e and not network"

# Kills, damaged records, refusing disks, builds: real processes by the dozen.
harness: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto -m "harness and not e2e and not network"

e2e: $(VENV)/.dev
	$(BIN)/python -m pytest -m "(e2e or network) and not long"

# By hand: many minutes of the real vLLM each.
long: $(VENV)/.dev
	$(BIN)/python -m pytest -m long

# By hand: what the tests of decisions, records and proofs let pass. Of some modules alone:
# python -m tests.mutants 'runbook.state.*'
mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutants

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p runbook
	$(BIN)/lint-imports

schema: $(VENV)/.ready
	$(BIN)/python -m runbook.document.schema > runbook/schemas/runbook.schema.json
	$(BIN)/python -m runbook.cli.schemas
	$(BIN)/python -m runbook.cli.guide

# Needs the package index, and for the CUDA toolkit a conda channel.
lock: $(VENV)/.dev
	$(BIN)/$(LOCK) pyproject.toml -o env/requirements.txt
	$(BIN)/$(LOCK) --extra dev pyproject.toml -o env/requirements-dev.txt
	cd env && ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate eval.in -o eval.requirements.txt \
	  $(SOURCE_ONLY:%=--no-emit-package %)
	$(BIN)/python -m runbook.env.lock_vllm 0.32.0-cpu 0.33.0 0.22.1
	$(BIN)/python -m runbook.env.relock

clean:
	rm -rf $(VENV) build dist mutants *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
