# Every target is one line of intent; `make help` lists them.
VENV := .venv
PY := $(VENV)/bin/python
unexport PYTHONDONTWRITEBYTECODE  # each of many processes would compile the same modules
PIP := sh config/pip-install.sh $(VENV) --constraint config/constraints.txt

.PHONY: help demo test test-system test-long lint format bench bench-gpu install uninstall wheel clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/'

$(VENV)/bin/python:
	@echo "lipsyncd: making a virtual environment in $(VENV)"
	@sh config/venv.sh $(VENV)

$(VENV)/.demo: pyproject.toml config/constraints.txt | $(VENV)/bin/python
	@$(PIP) --editable '.[demo]' && touch $@

$(VENV)/.test: pyproject.toml config/constraints.txt | $(VENV)/bin/python
	@$(PIP) --editable '.[test,musetalk]' && touch $@

# The sentence goes to the shell as it was given: with quotes, dollar signs, backslashes.
demo: $(VENV)/.demo   ## make two talking videos in demo-out/ with a daemon of its own
	$(VENV)/bin/lipsyncd demo $(if $(value TEXT),'$(subst ','\'',$(value TEXT))')

# Four processes on two cores, since tests of daemons mostly wait; a file at a time, in the order of names: else files with
# few tests come last, and the longest are among them. The second half is tests/system, which needs a machine of its own,
# kills daemons by the hundred, or waits for clocks and disks; and the tests of other folders that are marked as slow.
PROCESSES ?= 4
PYTEST := $(PY) -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder --durations=25

test: $(VENV)/.test   ## install what the tests need and run them: ten minutes on two cores
	sh config/test-packages.sh
	TMPDIR=$$(sh config/test-folder.sh) $(PYTEST) --ignore tests/system -m "not slow"

test-system: $(VENV)/.test   ## the other half: systemd, containers, kills, file errors, disks, mounts, clocks, hostile files, the page
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
	$(PY) -m benchmarks.between_jobs
	$(PY) -m benchmarks.first_video
	$(PY) -m benchmarks.intake
	$(PY) -m benchmarks.frames_to_video
	$(PY) -m benchmarks.video_source
	$(PY) -m benchmarks.motion
	$(PY) -m benchmarks.realtime_script
	$(PY) -m benchmarks.ledger
	$(PY) -m benchmarks.rest
	$(PY) -m benchmarks.idle
	$(PY) -m benchmarks.voices

bench-gpu: $(VENV)/.test   ## print what MuseTalk reaches on a GPU; DRY=1 runs each line on a CPU, with tiny networks
	$(PY) -m benchmarks.gpu $(if $(DRY),--dry-run)

PREFIX ?= /opt/lipsyncd
GIVEN_EXTRAS = $(if $(filter undefined,$(origin EXTRAS)),,EXTRAS='$(EXTRAS)')  # empty is a choice, too

install:         ## as root: the service, or its next version (PREFIX=/opt/lipsyncd, EXTRAS=musetalk,voices or musetalk-cuda; EXTRAS= without GPU)
	@PREFIX='$(PREFIX)' $(GIVEN_EXTRAS) sh config/install.sh

uninstall:       ## as root: take the service away; settings and data stay
	@PREFIX='$(PREFIX)' sh config/uninstall.sh

build/venv/bin/pyproject-build:
	sh config/venv.sh build/venv
	build/venv/bin/pip install --quiet --disable-pip-version-check build

wheel: build/venv/bin/pyproject-build   ## build a wheel and an sdist in dist/; they need nothing of the checkout
	rm -rf dist
	build/venv/bin/pyproject-build --outdir dist > build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	@ls dist/*

clean:           ## remove what the other targets made
	rm -rf $(VENV) demo-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
