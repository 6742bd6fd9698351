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
PEERS ?=
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

.PHONY: test-peers
test-peers: $(STAMP) ## Compare with the servers' own choice of files; PEERS='--directories 5000'
	$(BIN)/python -m pytest tests/peers --numprocesses 2 --dist loadscope $(PEERS)

.PHONY: test-launchers
test-launchers: $(STAMP) ## Run the tests under Slurm, Open MPI and MPICH, as root
	$(BIN)/python -m pytest tests/launchers --numprocesses 0

.PHONY: test-servers
test-servers: $(STAMP) ## Run real servers on small models: they open what is warmed, and nothing else
	$(BIN)/python -m pytest tests/servers --numprocesses 0

.PHONY: bench
bench: $(STAMP) ## Measure beside the peers; CHECKPOINT=/models/x: which flags suit it; BENCH='--help'
	@if [ -n "$$CHECKPOINT" ]; then $(BIN)/python -m tests.bench.own $(BENCH) -- "$$CHECKPOINT"; \
	else $(BIN)/python -m tests.bench $(BENCH); fi

.PHONY: bench-vm
bench-vm: $(STAMP) ## Measure on the mounts of test-vm, delayed NFS included; BENCH='--help'
	$(BIN)/python -m tests.vm.bench $(BENCH)

.PHONY: bench-uml
bench-uml: $(STAMP) ## Measure over NFS in user-mode Linux, which it builds first; BENCH='--help'
	$(BIN)/python -m tests.uml $(BENCH)

.PHONY: fuzz
fuzz: $(STAMP) ## Mutate all input written by others for 10 minutes; FUZZ='--help'
	$(BIN)/python -m tests.fuzz $(FUZZ)

.PHONY: soak
soak: $(STAMP) ## Warm, check, evict and interrupt side by side for 30 minutes; SOAK='--help'
	$(BIN)/python -m tests.tools.soak $(SOAK)

.PHONY: sweep
sweep: $(STAMP) ## Let every system call fail once, or hang: half an hour; SWEEP='--part 1/20 --hangs no'
	$(BIN)/python -m tests.faults.sweep $(SWEEP)

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
man: $(STAMP) ## Write man/prefetch-cli.1, man/options.md and README's tables from the command
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

# It starts as fast as the installed command on the Python that built it, whose bytecode it holds,
# uncompressed; any other Python compiles the sources at each start, which takes 0.2 s and more.
# psutil has compiled code for one machine type each. rich imports the packages that are removed only
# to render Markdown and source code. pyz/__init__.py says why it is no shiv or pex.
MACHINES := x86_64 aarch64
PIP_INTO := $(BIN)/python -m pip install --quiet --no-compile --target build/zipapp

.PHONY: zipapp
zipapp: $(STAMP) ## Build dist/prefetch-cli.pyz, one file with all dependencies, for nodes without pip
	rm -rf build/zipapp
	$(PIP_INTO) --no-build-isolation .
	rm -rf $(addprefix build/zipapp/,bin share psutil* pygments* markdown_it* mdurl*)
	for machine in $(MACHINES); do \
		$(PIP_INTO)/$$machine --no-deps --only-binary :all: --python-version 3.10 \
			--platform manylinux2014_$$machine psutil || exit; done
	cp --parents pyz/*.py build/zipapp
	cp pyz/__main__.py build/zipapp
	find build/zipapp \( -name direct_url.json -o -name RECORD \) -delete
	$(BIN)/python -m compileall -q -b -s build/zipapp --invalidation-mode unchecked-hash build/zipapp
	find build/zipapp -exec touch -d 1980-01-02 {} +
	mkdir -p dist
	$(BIN)/python -m zipapp --python '/usr/bin/env python3' --output dist/prefetch-cli.pyz build/zipapp
	chmod 755 dist/prefetch-cli.pyz

.PHONY: clean
clean: ## Remove everything these targets made here
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@
