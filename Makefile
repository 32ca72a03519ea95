# Everything a newcomer needs: Python 3.11+, make and gcc.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TREE := build/typecheck/runbook

.PHONY: rehearse test fast e2e lint schema lock clean

$(VENV)/.ready: pyproject.toml env/requirements.txt env/requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps \
	  -r env/requirements.txt -r env/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

rehearse: $(VENV)/.ready
	$(BIN)/runbook run rehearsal

test: fast e2e

fast: $(VENV)/.ready
	$(BIN)/python -m pytest -m "not e2e"

e2e: $(VENV)/.ready
	$(BIN)/python -m pytest -m e2e

# mypy knows no package that is put together from several folders: show it one.
lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TREE) && mkdir -p $(TREE)
	ln -s $(CURDIR)/runbook/* $(TREE)/
	ln -s $(CURDIR)/steps $(TREE)/steps
	ln -s $(CURDIR)/templates $(TREE)/templates
	ln -s $(CURDIR)/env $(TREE)/env
	cd build/typecheck && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p runbook

schema: $(VENV)/.ready
	$(BIN)/python -m runbook.document.schema > runbook/schemas/runbook.schema.json

lock: $(VENV)/.ready
	$(BIN)/python -m runbook.env.relock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
