# Everything a developer, CI and the Dockerfile run. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

BIN := .venv/bin
# Where `install-runtime` puts the image's environment.
PREFIX := /opt/tailrace
ARGS :=
# Whom `audit` asks: pypi or osv.
AUDIT_SERVICE := osv

LOCK := $(BIN)/uv pip compile --quiet --no-config --system-certs --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --custom-compile-command "make lock" $(LOCK_ARGS)
# `make lock LOCK_ARGS=--upgrade` takes the newest releases; without it only what must change changes.
LOCK_ARGS :=

.PHONY: help
help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 20

# --- the environment ---------------------------------------------------------

.PHONY: setup
setup: .venv/.built ## Make .venv with everything, and build what is compiled. Quick when nothing changed.
	@$(if $(filter setup,$(MAKECMDGOALS)),echo "Ready: .venv/bin/tailrace. Next: make demo",:)

.PHONY: setup-test
setup-test: ## Install what the tests need and only Debian has: PostgreSQL 15, valgrind, pgbouncer, Prometheus, Chromium.
	@.ci/setup-test

.PHONY: setup-peers
setup-peers: .venv-peers/.built ## Make .venv-peers: what the load tests compare the engine with. 290 MB.

.venv/bin/python:
	@python=$$(.ci/find-python) && echo "Making .venv with $$python" && "$$python" -m venv --clear .venv

.venv/.installed: requirements/dev.txt | .venv/bin/python
	@.ci/install-locked .venv requirements/dev.txt
	@touch $@

# The tests' reference routine is built with the readers that are measured against it.
.venv/.built: tests/rowcodec_reference.c
.venv/.built: .venv/.installed pyproject.toml setup.py engine/__init__.py $(shell find engine -name '*.p[yx][xd]')
	@.ci/build-editable .venv
	@touch $@

.venv-peers/.installed: requirements/peers.txt
	@python=$$(.ci/find-python) && "$$python" -m venv --clear .venv-peers
	@.ci/install-locked .venv-peers requirements/peers.txt
	@touch $@

.venv-peers/.built: .venv-peers/.installed load_tests/peers/programs/DebeziumConsumer.java
	@.ci/build-peers .venv-peers

.PHONY: lock
lock: setup ## Resolve requirements/*.txt again from pyproject.toml. LOCK_ARGS=--upgrade for newer releases.
	$(LOCK) pyproject.toml --extra demo --extra read --extra delta --extra iceberg --extra dask --extra dev --extra load --group build --output-file requirements/dev.txt
	$(LOCK) pyproject.toml --constraint requirements/dev.txt --output-file requirements/runtime.txt
	$(LOCK) --group build --constraint requirements/dev.txt --output-file requirements/build.txt
	$(LOCK) --group peers --output-file requirements/peers.txt

# --- what to do with it ------------------------------------------------------

.PHONY: demo
demo: setup ## A database, an S3 server and the engine between them, on this machine. ARGS are passed on.
	@$(BIN)/tailrace demo $(ARGS)

.PHONY: dashboard
dashboard: setup ## Write grafana/dashboards/tailrace.json from grafana/panels.py.
	$(BIN)/python -m grafana.dashboard

.PHONY: format
format: setup ## Format the code, and mend what ruff can mend.
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

.PHONY: check
check: setup ## Lint, formatting, types, layers, spelling, Dockerfile. Changes nothing.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/hadolint Dockerfile

.PHONY: test
test: setup setup-test ## All tests, against real servers. ARGS are passed on: make test ARGS="-n0 -k journal".
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

.PHONY: test-long
test-long: setup setup-test ## The long versions, one after the other, an hour in all. ARGS="-k kills" for a part.
	$(BIN)/pytest -m long --seed clock -v $(ARGS)

# What asks the server anything, and what lives on how it answers.
RELEASE_TESTS = tests/test_postgres_*.py $(addprefix tests/test_,$(addsuffix .py,acceptance catalog_watch \
	check_and_run drift drift_live fold_postgres initial_snapshot lock_watch locks new_tables row_filters \
	rowcodec_roundtrip snapshot_conditions snapshot_rewrites snapshot_values))

.PHONY: test-release
test-release: setup setup-test ## The tests of the source on another release of PostgreSQL: make test-release RELEASE=17.
	$(BIN)/pytest -n 2 --dist worksteal --postgres "$$(.ci/setup-postgres $(RELEASE))" $(ARGS) $(RELEASE_TESTS)

.PHONY: test-peers
test-peers: setup setup-peers ## The tests of the load tests' peers, as they are installed. One that is missing fails.
	$(BIN)/pytest -m peers $(ARGS)

.PHONY: mutants
mutants: setup ## Take every rule of the protocol away in turn: each must be missed. ARGS="--rules own_412" for some.
	PYTHONPATH=tests PYTHONHASHSEED=0 $(BIN)/python -m simulation --mutants --schedules 3000 $(ARGS)

.PHONY: bench
bench: setup ## Measure against the targets, for 20 minutes. ARGS="list" shows what there is.
	@$(MAKE) setup-peers || echo "Not all peers could be installed: the result says which are left out." >&2
	$(BIN)/python -m load_tests $(ARGS)

# --- the image ---------------------------------------------------------------

.PHONY: wheel
wheel: ## Build dist/*.whl with the locked build tools. It is named manylinux where it qualifies.
	@python=$$(.ci/find-python) && "$$python" -m venv --clear build/venv
	@.ci/install-locked build/venv requirements/build.txt
	@rm -rf dist
	@.ci/build-wheel build/venv dist
	@ls dist/*.whl

.PHONY: install-runtime
install-runtime: ## Install the locked dependencies and dist/*.whl into a new environment at PREFIX.
	@python=$$(.ci/find-python) && "$$python" -m venv --clear $(PREFIX)
	@.ci/install-locked $(PREFIX) requirements/runtime.txt
	$(PREFIX)/bin/pip install --quiet --no-deps dist/*.whl
	$(PREFIX)/bin/pip check

.PHONY: audit
audit: setup wheel ## Known vulnerabilities of what is locked, and an SBOM in dist. Asks AUDIT_SERVICE, on the internet.
	@$(MAKE) install-runtime PREFIX=build/runtime
	@$(BIN)/python .ci/sbom.py build/runtime requirements/runtime.txt dist
	@$(BIN)/python .ci/audit.py requirements/runtime.txt $(AUDIT_SERVICE)

.PHONY: clean
clean: ## Remove what builds, checks and tests left. .venv and .venv-peers stay.
	rm -rf build dist tailrace.egg-info
	find engine tests -name '*.so' -delete
	find engine -name '*.c' -delete
	rm -rf .cache .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache htmlcov
	rm -f .venv/.built tests/*.so
