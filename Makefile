# raybench: `make help` lists the targets.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
DEMO := demo
UI_PORT := 5000
WITHIN := 7200
# One torch thread a process: workers share the cores, and results then never depend on threads.
export OMP_NUM_THREADS ?= 1
# Containers often set it, and then every process compiles the 3,500 modules of a run again: 18 s of
# start-up instead of 8 s for each command, worker and test that starts one.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-slow audit lint format lock bench ui clean

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## create the environment from the lock, where it is missing or old

$(VENV)/.installed: requirements.lock pyproject.toml
	@set -e; uv="$$(command -v uv || true)"; \
	if [ -z "$$uv" ]; then \
	  echo "uv is absent: installing it with pip into .uv/"; \
	  python3 -m venv .uv && .uv/bin/pip --quiet install uv==$(UV_VERSION); uv=.uv/bin/uv; \
	fi; \
	[ -x $(BIN)/python ] || "$$uv" venv --quiet --python "$$(command -v python3)" $(VENV); \
	"$$uv" pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock; \
	"$$uv" pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	touch $@

demo: setup      ## score the paper's six models on real handwritten digits; results in demo/
	@$(BIN)/python jobs/score_digits.py --out $(DEMO)

test: setup      ## the tests (no GPU, no downloads): in parallel, then those on one Ray cluster
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not (ray or slow or gpu or network)"
	$(BIN)/python -m pytest -q -m "ray and not slow"

test-slow: setup ## the tests of half a minute or more each; those that begin WITHIN seconds
	$(BIN)/python -m pytest -q -rs -m slow --timeout 900 --within $(WITHIN)

audit: setup     ## ask OSV for known holes in the locked packages, where it can be reached
	@.ci/audit

lint: setup      ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup    ## mend what ruff can mend
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock:            ## resolve the dependencies anew (needs uv)
	uv pip compile --quiet --generate-hashes --no-header --universal --no-annotate \
	  --no-emit-index-url --extra dev pyproject.toml -o requirements.lock

bench: setup     ## measure overheads, designs, engine, memory; writes results/bench.json and .md
	$(BIN)/python tests/bench

ui: setup        ## open the MLflow UI on the demo's runs
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	$(BIN)/python -m mlflow ui --backend-store-uri sqlite:///$(DEMO)/mlflow.db --workers 1 \
	  --host 127.0.0.1 --port $(UI_PORT) --allowed-hosts 'localhost:*,127.0.0.1:*'

clean:           ## remove caches, the demo's results and build leftovers
	rm -rf $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -exec rm -rf {} +
