# `make demo` and `make test` are all the set-up a fresh machine needs: Python 3.10+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_OPTIONS ?= --disable-pip-version-check

.PHONY: demo test lint bench clean

# the pinned torch is installed first and by name, so that no range ever pulls another build
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install $(PIP_OPTIONS) --quiet -c constraints.txt -e ".[test]"
	@touch $@

# what the tests of adapters and quantised checkpoints load
$(VENV)/.extras: $(VENV)/.installed
	$(BIN)/python -m pip install $(PIP_OPTIONS) --quiet -c constraints.txt -e ".[test,extras]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/ceval-suite demo

test: $(VENV)/.extras lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/.extras
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/ceval-suite check

# tables of the engine's speed and memory; about half an hour on two cores, longest part lm-eval's
bench: $(VENV)/.installed
	$(BIN)/python tests/perf/bench.py versus --dtype float32
	$(BIN)/python tests/perf/bench.py versus --dtype bfloat16
	$(BIN)/python tests/perf/bench.py writing
	$(BIN)/python tests/perf/bench.py ablation
	$(BIN)/python tests/perf/bench.py scaling
	$(BIN)/python tests/perf/bench.py startup
	$(BIN)/python tests/perf/bench.py memory

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
