PYTHON ?= python3
PREFIX ?= /usr/local
VENV := .venv
BIN := $(VENV)/bin
# Named after the interpreter, so that another PYTHON makes another environment.
STAMP := $(VENV)/.made-for-$(shell $(PYTHON) -c 'import sys; print(sys.implementation.cache_tag)' 2>&1 | tail -n 1 | tr -c 'a-z0-9\n-' _)

# Recipes read these from the environment, so their values may hold any character.
export CHECKPOINT PREFIX
MAN_PAGES := man1/prefetch-cli.1 man5/prefetch-cli-json.5 \
	man7/prefetch-cli-caching.7 man7/prefetch-cli-recipes.7
BENCH ?=
FUZZ ?=
MUTANTS ?=
PYTHONS ?=
SOAK ?=
VM ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Tests and measurements share the page cache, so running them side by side disturbs both.
.NOTPARALLEL:

.PHONY: help
help: ## Print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(STAMP) ## Warm a small checkpoint and show the proof; CHECKPOINT=/models/x: warm that one
	@$(BIN)/python -m tests.demo.demo "$$CHECKPOINT"

# Three processes for two cores: the tests that run one after the other mostly wait.
.PHONY: test
test: lint ## Lint, check format and types, run all tests
	$(BIN)/python -m pytest --numprocesses 4 --dist loadscope

.PHONY: lint
lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: test-pythons
test-pythons: ## Run the tests on every Python here, 3.10 or later; PYTHONS='--but 3.11'
	$(PYTHON) tests/tools/pythons.py $(PYTHONS)

.PHONY: test-vm
test-vm: $(STAMP) ## Run the tests on real mounts, in a virtual machine; VM='-k 6.12' chooses
	$(BIN)/python -m pytest tests/vm --numprocesses 2 --dist loadscope --durations 12 $(VM)

.PHONY: test-launchers
test-launchers: $(STAMP) ## Run the tests under Slurm, Open MPI and MPICH, as root
	$(BIN)/python -m pytest tests/launchers --numprocesses 0

.PHONY: bench
bench: $(STAMP) ## Measure beside the peers; CHECKPOINT=/models/x: which flags suit it; BENCH='--help'
	@if [ -n "$$CHECKPOINT" ]; then $(BIN)/python -m tests.bench.own $(BENCH) -- "$$CHECKPOINT"; \
	else $(BIN)/python -m tests.bench $(BENCH); fi

.PHONY: bench-vm
bench-vm: $(STAMP) ## Measure on the mounts of test-vm, delayed NFS included; BENCH='--help'
	$(BIN)/python -m tests.vm.bench $(BENCH)

.PHONY: fuzz
fuzz: $(STAMP) ## Mutate all input written by others for 10 minutes; FUZZ='--help'
	$(BIN)/python -m tests.fuzz $(FUZZ)

.PHONY: soak
soak: $(STAMP) ## Warm, check, evict and interrupt side by side for 30 minutes; SOAK='--help'
	$(BIN)/python -m tests.tools.soak $(SOAK)

.PHONY: mutants
mutants: $(STAMP) ## Break the pure stages and what handles faults; list what no test notices
	$(BIN)/python -m pip install --quiet --editable '.[mutants]'
	$(BIN)/python -m tests.tools.mutants $(MUTANTS)

# Coverage opens its own files; a user who may not write them gets a traceback.
DISTURBED := tests/alone/machine/test_command.py::test_command_has_the_same_descriptors_closed \
	tests/alone/own/test_pagecache.py::test_on_fuse_the_figure_is_true_or_unknown

.PHONY: coverage
coverage: $(STAMP) ## Run all tests, and list the branches they miss
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest --numprocesses 4 --dist loadscope \
		$(foreach test,$(DISTURBED),--deselect $(test))
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

.PHONY: man
man: $(STAMP) ## Write man/prefetch-cli.1 and README's tables from the command
	$(BIN)/python -m man.generate

.PHONY: install
install: ## Install command and man pages below PREFIX=/usr/local
	@case "$$PREFIX" in /*) ;; *) echo "PREFIX: expected an absolute path, found '$$PREFIX'" >&2; exit 2;; esac
	$(PYTHON) -m venv --clear "$$PREFIX/lib/prefetch-cli"
	"$$PREFIX/lib/prefetch-cli/bin/python" -m pip install --quiet .
	mkdir -p "$$PREFIX/bin"
	ln -sf ../lib/prefetch-cli/bin/prefetch-cli "$$PREFIX/bin/"
	set -e; for page in $(MAN_PAGES); do \
		mkdir -p "$$PREFIX/share/man/$${page%/*}"; \
		ln -sf "../../../lib/prefetch-cli/share/man/$$page" "$$PREFIX/share/man/$$page"; \
	done
	"$$PREFIX/bin/prefetch-cli" --version

.PHONY: uninstall
uninstall: ## Remove what `make install` put below PREFIX
	rm -rf "$$PREFIX/lib/prefetch-cli"
	rm -f "$$PREFIX/bin/prefetch-cli"
	for page in $(MAN_PAGES); do rm -f "$$PREFIX/share/man/$$page"; done

.PHONY: dist
dist: $(STAMP) ## Build wheel and sdist into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

.PHONY: clean
clean: ## Remove everything these targets made here
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
