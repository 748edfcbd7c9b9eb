# What a person types here. `make` alone lists it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8787
# How many processes run the tests; 0 runs them in one.
WORKERS ?= auto
IN_PARALLEL = -n $(WORKERS) --maxprocesses 4 --dist worksteal

# Python 3.11 or newer. A name counts only when it runs.
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$name"; break; }; done)
# uv where it is at hand, else venv and pip.
UV ?= $(firstword $(shell command -v uv 2>/dev/null) $(wildcard $(BIN)/uv))

ifneq ($(UV),)
  create = $(BIN)/python -c '' 2>/dev/null || "$(UV)" venv --quiet --allow-existing --python "$(or $(PYTHON),3.11)" $(VENV)
  install = "$(UV)" pip install --quiet --python $(BIN)/python
else
  create = $(BIN)/python -c 'import pip' 2>/dev/null || "$(or $(PYTHON),$(no_python))" .ci/environment.py $(VENV)
  install = $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif
no_python = $(error no Python 3.11 or newer was found; install python3, or say make PYTHON=/path/to/python3)

RUNTIME := $(VENV)/.requirements
DEVELOPMENT := $(VENV)/.requirements-dev

export_requirements = $(BIN)/uv export --quiet --locked --offline --no-header --no-annotate --no-emit-project --no-default-groups
export_runtime = $(export_requirements) --group build
export_development = $(export_requirements) --group dev

.PHONY: help
help:  ## list what can be done here
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-24s%s\n", $$1, $$2 }'

.PHONY: run
run: $(RUNTIME)  ## start everything at http://127.0.0.1:8787 (another port: PORT=9000)
	@exec $(BIN)/counterseal serve --port $(PORT)

.PHONY: test
test: $(DEVELOPMENT)  ## run every test but the long ones (some of them: ARGS="-k health")
	@$(BIN)/python -m pytest -m "not soak" $(IN_PARALLEL) $(ARGS)

.PHONY: quick
quick: $(DEVELOPMENT)  ## run the fast tests: unit and tour
	@$(BIN)/python -m pytest -m "not soak" $(IN_PARALLEL) tests/unit tests/tour $(ARGS)

.PHONY: soak
soak: $(DEVELOPMENT)  ## run the long tests, which tell how far they are
	@$(BIN)/python -m pytest -m soak -s -o faulthandler_timeout=900 $(ARGS)

.PHONY: check
check: $(DEVELOPMENT)  ## run the linters, the type checker, the floors and the pinned requirements
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	@if command -v luacheck >/dev/null; then luacheck --quiet src; \
	elif [ "$$REQUIRE_ALL" = 1 ]; then echo "make: luacheck is missing; make system-packages installs it" >&2; exit 1; \
	else echo "luacheck is not installed: Lua files are not checked"; fi
	@$(BIN)/uv lock --quiet --check --offline
	@$(export_runtime) | diff -u requirements.txt - || { echo "make: requirements.txt differs from uv.lock; make lock writes it" >&2; exit 1; }
	@$(export_development) | diff -u requirements-dev.txt - || { echo "make: requirements-dev.txt differs from uv.lock; make lock writes it" >&2; exit 1; }

.PHONY: bench
bench: $(DEVELOPMENT)  ## measure against other clients (one of them: ONLY=name)
	@$(BIN)/python -m benchmarks $(ONLY)

.PHONY: system-packages
system-packages:  ## install by apt what only some tests need
	@.ci/system-packages

.PHONY: lock
lock: $(DEVELOPMENT)  ## write uv.lock and the requirements files after pyproject.toml has changed
	$(BIN)/uv lock
	@$(export_runtime) > requirements.txt
	@$(export_development) > requirements-dev.txt

# Each stamp is older than its requirements when these have changed; then the environment is brought up to date.
$(RUNTIME): requirements.txt pyproject.toml
	@echo "installing into $(VENV)"
	@$(create)
	@$(install) --require-hashes -r requirements.txt
	@$(install) --no-deps --no-build-isolation -e .
	@touch $@

$(DEVELOPMENT): requirements-dev.txt pyproject.toml
	@echo "installing into $(VENV)"
	@$(create)
	@$(install) --require-hashes -r requirements-dev.txt
	@$(install) --no-deps --no-build-isolation -e .
	@touch $@ $(RUNTIME)
