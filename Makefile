# Everything starts here: 'make' lists it. Needs make, git and python3 with venv; the rest comes from uv.lock.

UV_VERSION := 0.13.8
READY      := .venv/.ready
# Most of a test's time is waiting: more processes than cores. Those with platforms of their own are many processes each.
TEST_PROCESSES ?= 4
PLATFORMS      := $(addprefix tests/,chaos contract deploy engines promises)
PLATFORM_TESTS ?= 2
# Of each file of promises and chaos, drawn anew each time; 'make chaos' takes all.
PART           ?= 0.25
# A platform of this folder may run meanwhile: all that is started here finds ports of its own.
prepare        := CAIRN_API_PORT=0 CAIRN_TEMPORAL_PORT=0 CAIRN_TEMPORAL_UI_PORT=0 .venv/bin/cairn doctor --install
pytest         := .venv/bin/pytest --dist loadfile --no-loadscope-reorder --numprocesses
on         = $(filter-out 0 no false,$($(1)))

# What is compiled once is not compiled anew by each process that the tests start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo up down reset test chaos bench load lint audit licences sbom docs doctor clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The versions of the lock, into .venv. uv itself comes by pip, once.
$(READY): uv.lock pyproject.toml Makefile
	@test -x .venv/bin/pip || python3 -m venv .venv || \
		{ echo "python3 3.11 or newer with venv is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@.venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "python 3.11 or newer is needed" >&2; exit 1; }
	@test -x .venv/bin/uv || { echo "Setting up .venv"; .venv/bin/pip install --quiet uv==$(UV_VERSION); }
	@UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never \
		.venv/bin/uv sync --quiet --frozen --all-extras --inexact --python .venv/bin/python
	@touch $@

demo: $(READY) ## A tour: launch, kill -9 in the middle, cancel, delete
	@.venv/bin/cairn demo

up: $(READY) ## Start the platform here (DETACH=1: in the background)
	@.venv/bin/cairn up $(if $(call on,DETACH),--detach)

down: $(READY) ## Stop the platform; instances keep running
	@.venv/bin/cairn down

reset: $(READY) ## Delete the platform's data and its containers (YES=1: do not ask)
	@.venv/bin/cairn reset $(if $(call on,YES),--yes)

doctor: $(READY) ## Check what the platform needs of this machine
	@.venv/bin/cairn doctor

test: lint ## All of the code, and a part of the tests on whole platforms; installs what it needs
	@$(prepare)
	@failed=0; set -x; \
		$(pytest) $(TEST_PROCESSES) $(addprefix --ignore=,$(PLATFORMS)) || failed=1; \
		$(pytest) $(PLATFORM_TESTS) --part $(PART) $(PLATFORMS) || failed=1; \
		exit $$failed

chaos: $(READY) ## Kill everything everywhere, at length (CAIRN_CHAOS_SEED=N repeats a run)
	@$(prepare)
	CAIRN_CHAOS=all .venv/bin/pytest $(PLATFORMS) tests/cli/test_commands.py

bench: $(READY) ## Measure, and write docs/benchmarks.md
	@$(prepare)
	.venv/bin/python bench/run.py

load: $(READY) ## Measure how it scales out, and write it into docs/scaling.md
	.venv/bin/python bench/load.py

lint: $(READY) ## ruff, mypy, import-linter
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

audit: $(READY) licences ## Known vulnerabilities of what is locked (OFFLINE=1: pass where no database answers)
	@.venv/bin/python .ci/audit.py $(if $(call on,OFFLINE),--offline-ok)

licences: $(READY) ## Whether each locked package may be used
	@.venv/bin/python .ci/licences.py

sbom: $(READY) ## Bill of materials, CycloneDX, into dist
	@.venv/bin/python .ci/sbom.py --output dist/cairn.cdx.json

docs: $(READY) ## Write anew what is generated of docs
	@.venv/bin/python .ci/reference.py

clean: ## Remove .venv and caches; data stays ('make reset' deletes it)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
