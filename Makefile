# Everything there is to run. `make` alone lists it.
# The environment is in .venv, built tools are in .tools; git ignores both.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.ONESHELL:
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
INSTALLED := .venv/.installed
ARGS ?=
SEEDS ?= 2000
# Most tests wait for a conversation: more processes than cores.
TEST_PROCESSES ?= 4
CALLS ?= 200

# No setting of the caller's shell steers pip, pyright or the tests into another environment.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(INSTALLED) ## install everything into .venv (again only when what is needed changed)

$(INSTALLED): pyproject.toml constraints.txt ledger/voicecost_ledger/_version.py
	@python="$$(scripts/find_python)"
	if [ ! -x $(PY) ] || ! $(PY) -c '' 2>/dev/null; then \
	  echo "setup: a new environment in .venv with $$("$$python" --version)"; \
	  rm -rf .venv; \
	  "$$python" -m venv .venv; \
	fi
	echo "setup: installing the package and its tools into .venv: a minute or two, once"
	pip() { \
	  .venv/bin/pip --quiet "$$@" || { \
	    echo "setup: pip could not install (its reason is above). Is the package index reachable?" \
	      "Once it is, run make setup again." >&2; \
	    exit 1; \
	  }; \
	}
	pip install --constraint constraints.txt --upgrade pip
	pip install --constraint constraints.txt --build-constraint constraints.txt \
	  --editable '.[all]' --group dev
	touch $@

.PHONY: demo
demo: setup ## three calls in a real room: what they cost, and what LiveKit would have said
	@$(PY) -m examples.demo $(ARGS)

.PHONY: test
test: setup ## run every test, the room tests on a real livekit-server included
	@$(PY) scripts/tools.py || echo "test: without it the room tests are skipped; with CI=true they fail"
	$(PY) -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadgroup $(ARGS)

.PHONY: lint
lint: setup ## check format, style, types and the direction of imports
	@.venv/bin/ruff format --check .  || { echo "lint: run make format" >&2; exit 1; }
	.venv/bin/ruff check .
	.venv/bin/pyright --pythonpath $(PY)
	.venv/bin/mypy
	.venv/bin/lint-imports

.PHONY: format
format: setup ## format the code and repair what ruff can repair
	@.venv/bin/ruff check --fix --quiet . || true
	.venv/bin/ruff format .

.PHONY: bench
bench: setup ## measure what metering costs, as ratios to a reference in the same run
	@missed=; for file in benchmarks/bench_*.py; do \
	  name="$$(basename "$$file" .py)"; \
	  echo "== $${name#bench_} (make bench-$${name#bench_})"; \
	  $(PY) -m "benchmarks.$$name" $(ARGS) || missed="$$missed $${name#bench_}"; \
	done
	if [ -n "$$missed" ]; then echo "bench: these missed a bar or failed:$$missed" >&2; exit 1; fi

bench-%: setup
	@[ -f benchmarks/bench_$*.py ] || { \
	  echo "bench-$*: there is no benchmarks/bench_$*.py; there are:" \
	    $(patsubst benchmarks/bench_%.py,bench-%,$(wildcard benchmarks/bench_*.py)) >&2; \
	  exit 1; \
	}
	$(PY) -m benchmarks.bench_$* $(ARGS)

.PHONY: soak
soak: setup ## play the simulation's histories, then calls against their bills, then many at once: make soak SEEDS=10000 CALLS=500
	@VOICECOST_SIMULATION_SEEDS=$(SEEDS) $(PY) -m pytest tests/simulation --quiet $(ARGS)
	$(PY) -m benchmarks.bench_accuracy --calls $(CALLS)
	$(PY) -m benchmarks.bench_overhead --seconds 300 --rounds 1 --strict

.PHONY: contract
contract: setup ## hold the plugin against the oldest and the newest LiveKit it supports
	@$(PY) scripts/tools.py
	$(PY) scripts/contract.py $(ARGS)

.PHONY: clean
clean: ## remove the environments, the built tools and everything that was generated
	@rm -rf .venv .venv-contract .tools .demo dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
