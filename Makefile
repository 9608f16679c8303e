# Every target is one line of intent; `make help` lists them.
VENV := .venv
PY := $(VENV)/bin/python
unexport PYTHONDONTWRITEBYTECODE  # each of many processes would compile the same modules
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint config/constraints.txt

.PHONY: help demo test test-system test-long lint format bench install uninstall clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

$(VENV)/bin/python:
	sh config/venv.sh $(VENV)

$(VENV)/.demo: pyproject.toml config/constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[demo]' && touch $@

$(VENV)/.test: pyproject.toml config/constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[test,musetalk]' && touch $@

demo: $(VENV)/.demo   ## make two talking videos in demo-out/ with a daemon of its own
	$(VENV)/bin/lipsyncd demo $(if $(TEXT),"$(TEXT)")

# Two processes, a file at a time, in the order of names: else files with few tests come last, and the longest are among
# them. The second half is tests/system, which needs a machine of its own, kills daemons by the hundred, or waits for
# clocks and disks; and the tests of other folders that are marked as slow.
PYTEST := $(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=25

test: $(VENV)/.test   ## install what the tests need and run them: ten minutes on two cores
	sh config/test-packages.sh
	$(PYTEST) --ignore tests/system -m "not slow"

test-system: $(VENV)/.test   ## the other half: systemd, containers, kills, file errors, disks, mounts, clocks, hostile files
	sh config/test-packages.sh
	$(PYTEST) -m "slow or system" tests/system $$(grep -rl --include='test_*.py' mark.slow tests)

test-long: $(VENV)/.test   ## the full counts, which take hours: crashes, file errors, REST, bursts, disks, mounts, a soak
	sh config/test-packages.sh
	$(PY) -m tests.kits.long_run

lint: $(VENV)/.test   ## format, lint and types, as CI checks them
	$(VENV)/bin/ruff format --check . && $(VENV)/bin/ruff check . && $(VENV)/bin/mypy --strict lipsyncd

format: $(VENV)/.test   ## put the code into its format
	$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

bench: $(VENV)/.test   ## print the figures of benchmarks/README.md
	$(PY) -m benchmarks.figures
	$(PY) -m benchmarks.rest

PREFIX ?= /opt/lipsyncd
EXTRAS ?= musetalk,tts

install:         ## as root: the service, or its next version (PREFIX=/opt/lipsyncd, EXTRAS=musetalk,tts; EXTRAS= without GPU)
	@PREFIX='$(PREFIX)' EXTRAS='$(EXTRAS)' sh config/install.sh

uninstall:       ## as root: take the service away; settings and data stay
	@PREFIX='$(PREFIX)' sh config/uninstall.sh

clean:           ## remove what the other targets made
	rm -rf $(VENV) demo-out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
