# One way to do each thing. Every target sets up what it needs: a virtual environment, made once
# and brought up to date when pyproject.toml changes. Needs Python 3.10 or later, and make.
#
#   make test PYTHON=python3.12     another Python (in a .venv-3.12 of its own)
#   make test ARGS="-k resume -x"   one pytest run with these arguments
#   make test WORKERS=0             one test after the other

.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

# python3 where that is new enough, else the newest one found.
DEFAULT_PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo "$$p" && exit; \
	done; echo python3)
PYTHON ?= $(DEFAULT_PYTHON)

version_of = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
DEFAULT_VERSION := $(call version_of,$(DEFAULT_PYTHON))
VERSION := $(call version_of,$(PYTHON))
VENV ?= .venv$(if $(filter-out $(DEFAULT_VERSION),$(VERSION)),-$(VERSION))
BIN := $(VENV)/bin

# What a venv holds: RUN the package (editable) as its users have it, DEV all that the work needs,
# ENGINES some of those that start processes, DASK what the tests of pubsub.dask need, BENCH the
# libraries that the benchmarks measure beside it.
RUN := $(VENV)/.run-$(VERSION)
DEV := $(VENV)/.dev-$(VERSION)
ENGINES := $(VENV)/.engines-$(VERSION)
BENCH := $(VENV)/.bench-$(VERSION)
DASK := $(VENV)/.dask-$(VERSION)

ONLY ?=
PEERS ?=
ARGS ?=
# Most tests wait most of their time, so more of them than processors run at once.
WORKERS ?= 4
SEEDS ?= 1000
SEED ?=
PROFILE ?=
RAY ?=
MINUTES ?=
SECONDS ?= 60

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(RUN) ## a coordinator, a publisher of this machine's counters, and a tail, live
	@$(BIN)/python examples/demo.py

.PHONY: test
test: $(DEV) ## the test suite, on plain asyncio where the loop matters, then all of it on uvloop
ifeq ($(strip $(ARGS)),)
	PUBSUB_TEST_LOOP=asyncio $(BIN)/python -m pytest -n $(WORKERS) --max-worker-restart 0 -q -m "loop and not slow" --ignore tests/engines --ignore tests/dask --ignore tests/browser
	PUBSUB_TEST_LOOP=uvloop $(BIN)/python -m pytest -n $(WORKERS) --max-worker-restart 0 --ignore tests/engines --ignore tests/dask --ignore tests/browser
else
	$(BIN)/python -m pytest $(ARGS)
endif

# Where everything is open in the suite, everything has a key and is TLS here.
OVER_TLS := $(patsubst %,tests/faults/test_%.py,proxy partition gone coordinators signals ends callers) \
	tests/integration/test_promises.py

.PHONY: test-tls
test-tls: $(DEV) ## the tests of faults and promises once more, over TLS (ARGS="tests/faults/test_gone.py")
	PUBSUB_TEST_TRUST=tls $(BIN)/python -m pytest -n $(WORKERS) --max-worker-restart 0 -q \
		$(or $(ARGS),$(OVER_TLS))

.PHONY: test-relay
test-relay: $(DEV) ## the faults between two peers once more, over a relay
	PUBSUB_TEST_WAY=relay PUBSUB_TEST_TRUST=tls $(BIN)/python -m pytest -n $(WORKERS) \
		--max-worker-restart 0 -q -m "not slow" $(or $(ARGS),tests/faults/test_proxy.py)

# Elsewhere in the faults, what fails between two processes is TCP.
OVER_UNIX := $(patsubst %,tests/faults/test_%.py,gone coordinators signals ends callers limits resources users)

.PHONY: test-unix
test-unix: $(DEV) ## the faults of processes on one host once more, over Unix sockets
	PUBSUB_TEST_WAY=unix $(BIN)/python -m pytest -n $(WORKERS) --max-worker-restart 0 -q \
		$(or $(ARGS),$(OVER_UNIX))

.PHONY: test-dask
test-dask: $(DASK) ## the tests and examples of pubsub.dask, with Dask's newest release
	$(BIN)/python -m pytest -n 2 --max-worker-restart 0 -q $(or $(ARGS),tests/dask)

# Without playwright, or a chromium on the PATH, these are skipped.
.PHONY: test-dashboard
test-dashboard: $(DEV) ## the dashboard in a headless Chromium, the one of the system (ARGS="-k keyboard")
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[browser]' \
		|| echo "playwright cannot be installed: the tests in a browser are skipped"
	$(BIN)/python -m pytest -q tests/browser $(ARGS)

.PHONY: test-deploy
test-deploy: $(DEV) ## the files in deploy/, with the schemas of Kubernetes and a linter for containers
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[deploy]' \
		|| echo "Not all that checks deploy/ could be installed: those checks are left out."
	$(BIN)/python -m pytest -q tests/test_deploy.py

.PHONY: test-engines
test-engines: $(ENGINES) ## inside multiprocessing, joblib, MPI …, with RAY=1 in Ray too (ARGS="-k joblib")
ifneq ($(RAY),)
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'ray>=2.9' \
		|| echo "Ray cannot be installed: its tests are skipped"
endif
	$(BIN)/python -m pytest -n 2 --max-worker-restart 0 -q tests/engines $(ARGS)

.PHONY: soak
soak: $(DEV) ## simulated worlds (SEEDS=1000, SEED=n again, PROFILE=faults), or real ones (MINUTES=30)
ifeq ($(strip $(MINUTES)),)
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) \
		$(if $(PROFILE),--profile $(PROFILE))
else
	@$(BIN)/python -m tests.faults.soak --minutes $(MINUTES)
endif

.PHONY: test-all
test-all: ## the test suite on every Python 3.10 to 3.13 found, on the PATH or among pyenv's
	@set -e; ran=; for v in 3.10 3.11 3.12 3.13; do \
		found=; for p in python$$v "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$v.*/bin/python; do \
			if "$$p" -c '' 2>/dev/null; then found=$$p; break; fi; \
		done; \
		if [ -z "$$found" ]; then echo "== Python $$v: not found, skipped"; continue; fi; \
		echo "== Python $$v: $$found"; $(MAKE) test PYTHON="$$found"; ran="$$ran $$v"; \
	done; echo "== passed on:$$ran"

.PHONY: lint
lint: $(DEV) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: fmt
fmt: $(DEV) ## let ruff repair what it can
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

.PHONY: types
types: $(DEV) ## mypy --strict over all of it, benchmarks and tests too
	@$(BIN)/python .ci/check_types.py

.PHONY: fuzz
fuzz: $(DEV) ## fuzz what strangers can send, for SECONDS=60; with atheris where it is installed
	@$(BIN)/python -m tests.fuzz $(SECONDS)

.PHONY: bench
bench: $(BENCH) ## the benchmarks beside their peers (ONLY=name,... PEERS=name,... narrow them)
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only "$(ONLY)") $(if $(PEERS),--peers "$(PEERS)") $(ARGS)

# Dask's own Pub and Sub were in distributed up to 2025.3: an environment of its own has that one.
OLD_DASK := .venv-dask-2025.3.0
$(OLD_DASK)/.made:
	@$(PYTHON) -m venv $(OLD_DASK)
	@$(OLD_DASK)/bin/python -m pip install -q "distributed==2025.3.0" numpy
	@touch $@

.PHONY: bench-dask
bench-dask: $(DASK) $(OLD_DASK)/.made ## the benchmark beside Dask's own Pub and Sub, of distributed 2025.3.0
	@$(BIN)/python -m benchmarks.dask $(OLD_DASK)/bin/python $(ARGS)

.PHONY: dist
dist: $(DEV) ## the sdist, and from it the wheel, in dist/
	@rm -rf dist build/lib build/bdist.*
	@$(BIN)/python -m build

.PHONY: wheel
wheel: dist ## build the wheel, look into it, install it elsewhere and use it
	@$(BIN)/python .ci/check_wheel.py dist/*.whl

.PHONY: clean
clean: ## remove what the targets made, except the virtual environments
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find pubsub coordinator cli tests benchmarks examples .ci -name __pycache__ -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove the virtual environments too
	rm -rf .venv .venv-3.*

# A venv is made again only for another Python; for a new pyproject.toml, pip brings it up to date.
# Some systems split ensurepip off from Python: there, the system's pip fills the venv.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	echo "pubsubd needs Python 3.10 or later, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -n 1)." >&2; \
	echo "Name another one: make $(or $(MAKECMDGOALS),help) PYTHON=/path/to/python3.12" >&2; \
	exit 1; }
@echo "Setting up $(VENV) (Python $(VERSION)) ..."
@$(BIN)/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null \
	&& $(BIN)/python -m pip --version >/dev/null 2>&1 \
	|| if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv --clear $(VENV); \
	else \
		$(PYTHON) -m venv --clear --without-pip $(VENV) \
		&& $(PYTHON) -m pip --python $(BIN)/python install -q pip; \
	fi
@$(BIN)/python -m pip install -q --disable-pip-version-check -e '$(1)'
endef

$(RUN): pyproject.toml pubsub/_version.py
	$(call install,.)
	@touch $(RUN)

$(DEV): pyproject.toml pubsub/_version.py
	$(call install,.[dev])
	@touch $(RUN) $(DEV)

$(DASK): $(DEV)
	$(call install,.[dask-test])
	@touch $(DASK)

$(ENGINES): $(DEV)
	$(call install,.[engines])
	@touch $(ENGINES)

# A peer that cannot be installed here is left out of the benchmarks, which say so.
$(BENCH): $(DEV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]' \
		&& touch $(BENCH) || echo "Not all peers could be installed: those are left out."
