# make demo and make test are the only set-up: both make .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export UV_COMPILE_BYTECODE = 1

.PHONY: setup demo test lint bench lock clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/ohem demo

test: setup
	$(BIN)/pytest -n auto

# DATA is a data set of photographs, RUN a run trained on such; the demo makes both where none is named.
DATA ?= runs/demo/data:trainval
RUN ?= runs/demo/ohem
OUT ?= runs/bench
FLAGS ?=
BENCH = $(BIN)/python -m benchmarks

bench: setup
	test "$(RUN)" != runs/demo/ohem || test -e $(RUN)/checkpoint.pt || $(BIN)/ohem demo
	mkdir -p $(OUT)
	$(BENCH).step --data $(DATA) $(FLAGS) --rois 2000 --out $(OUT)/step.json
	$(BENCH).pool --data $(DATA) $(FLAGS) --out $(OUT)/pool.json
	$(BENCH).select --data $(DATA) $(FLAGS) --out $(OUT)/select.json
	$(BENCH).detect --data $(DATA) $(FLAGS) --run $(RUN) --out $(OUT)/detect.json
	$(BENCH).agree --data $(DATA) $(FLAGS) --run $(RUN) --out $(OUT)/agree.json
	$(BENCH).propose --data $(DATA) $(FLAGS) --out $(OUT)/propose.json
	$(BENCH).goals $(OUT)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Versions only, no addresses: what uv.lock would hold besides stays out of the repository.
lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --group dev \
		--no-annotate --no-header --no-emit-package ohem pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
