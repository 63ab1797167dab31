# make demo         the main job, a top-k sweep over five tasks of handwritten digits, and its baseline
# make models       fetch and convert three pretrained models and the texts of three tasks
# make demo-text    O-LoRA beside SeqLoRA through these tasks on the smallest of the models
# make test         every test on Hydra 1.3, then what touches Hydra on Hydra 1.4
# make test-newest  what touches other packages, with the newest of them on Python 3.13
# make test-oldest  the same, with the oldest that setup.py allows on Python 3.10
# make test-slow    the tests that take minutes each
# make storm        kills, full disks and damage at random: SECONDS=1800 of it; SEED, EPISODE and KINDS choose
# make test-gpu     the tests that need an NVIDIA GPU
# make test-models  the tests on what `make models` has fetched
# make check        lint, format and types
# make docs         the documentation site, in build/docs; a warning is an error
# make dist         the wheel and the source distribution, built and checked, in dist/
# make clean        remove what the other targets made
#
# All of them first make the virtual environment they need, again whenever a pin changes.
# PYTHON=... chooses the interpreter; the pins are for Python 3.11 and newer.

PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# The interpreter of that version, on the path or of pyenv; PYTHON where there is none.
PREFERRED = $(or $(shell for python in python$(PREFERS) $(HOME)/.pyenv/versions/$(PREFERS).*/bin/python; do \
	$$python -c '' 2>/dev/null && echo $$python && break; done),$(PYTHON))
WITH = $(PYTHON)

# Tests wait for processes much of their time: three at once keep two cores busy.
PYTEST = bin/python -m pytest -n 3 --dist worksteal

# What another version of Hydra can change. All else is our own arithmetic, the training app, or the
# ends of processes: `make test` tries it once, on Hydra 1.3.
HYDRA = tests/job tests/yaml tests/search/test_space.py \
	tests/project/test_packaging.py tests/project/test_scan_cost.py
# And what other versions of nvidia-ml-py, rich and Python can change.
QUICK = $(HYDRA) tests/executor/test_launcher.py tests/device/test_cli.py tests/device/test_probe.py tests/device/test_leases.py \
	tests/sweep/test_progress.py

PIP = bin/python -m pip install --quiet --disable-pip-version-check
PINS = $(filter constraints%,$^)

STORM = .venv/bin/python tests/storm/storm.py
# How long `make storm` takes; half an hour at most.
SECONDS = 600

DEMO = .venv/bin/python benchmarks/split_digits.py --folder demo

.PHONY: demo models demo-text test test-hydra13 test-hydra14 test-newest test-oldest test-slow storm test-gpu test-models check docs dist clean
.NOTPARALLEL:

# Tests start hundreds of processes: what one has compiled the others need not compile again.
unexport PYTHONDONTWRITEBYTECODE

demo: .venv/.installed
	$(DEMO)

models: .venv/.installed
	.venv/bin/python -m train.models

demo-text: .venv/.installed
	.venv/bin/python -m train.models minilm texts
	.venv/bin/python benchmarks/text_chain.py --folder demo-text

test: test-hydra13 test-hydra14

test-hydra13: .venv/.installed
	.venv/$(PYTEST)

test-hydra14: .venv-hydra14/.installed
	.venv-hydra14/$(PYTEST) $(HYDRA)

test-newest: .venv-newest/.installed
	.venv-newest/$(PYTEST) $(QUICK)

test-oldest: .venv-oldest/.installed
	.venv-oldest/$(PYTEST) $(QUICK)

test-slow: .venv/.installed
	.venv/bin/python -m pytest -m slow

storm: .venv/.installed
	$(STORM) --seconds $(SECONDS) $(SEED:%=--seed %) $(EPISODE:%=--episode %) $(if $(KINDS),--kinds $(KINDS))

# pytest's status 5 is that no test was selected.
test-gpu: .venv/.installed
	@nvidia-smi --list-gpus 2>/dev/null || { echo "No NVIDIA GPU here: nothing was tested."; exit 0; }; \
	.venv/bin/python -m pytest -m gpu || { [ $$? -eq 5 ] && echo "No test has the mark gpu yet."; }

test-models: .venv/.installed
	.venv/bin/python -m pytest -m 'models and not slow'

check: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The pages must load nothing from a network.
docs: .venv/.installed
	rm -rf build/docs
	.venv/bin/python -m sphinx --quiet --fail-on-warning --keep-going -j auto -d build/doctrees docs build/docs
	@! grep -rnE '<(script|link|img|iframe|source)[^>]*(src|href|srcset)="(https?:)?//' build/docs --include=*.html
	@! grep -rnE 'url\(.?(https?:)?//|@import' build/docs --include=*.css
	@echo "The site: build/docs/index.html"

dist:
	@$(PYTHON) -m venv .venv-dist
	@.venv-dist/$(PIP) build==1.6.1 twine==7.0.0
	rm -rf dist
	.venv-dist/bin/python -m build --outdir dist
	.venv-dist/bin/python -m twine check --strict dist/*

.venv/.installed: constraints.txt
.venv/.installed: EXTRAS = train,families,models,report,completion,ray,gp,tensorboard,mlflow,lightning,test,check,docs
.venv-hydra14/.installed: constraints-hydra14.txt
.venv-hydra14/.installed: EXTRAS = test,test14
.venv-oldest/.installed: constraints-oldest.txt
.venv-oldest/.installed: EXTRAS = test
.venv-oldest/.installed: WITH = $(PREFERRED)
.venv-oldest/.installed: PREFERS = 3.10
.venv-newest/.installed: EXTRAS = test
.venv-newest/.installed: WITH = $(PREFERRED)
.venv-newest/.installed: PREFERS = 3.13
# Made anew each time: what was the newest yesterday may not be today.
.PHONY: .venv-newest/.installed
.venv-newest/.installed: CLEAR = --clear

# The stamp is written last, so that an interrupted installation is done again.
.venv/.installed .venv-hydra14/.installed .venv-oldest/.installed .venv-newest/.installed: setup.py
	@test -n "$(WITH)" || { echo "No Python 3.11 or newer was found; name one: make PYTHON=..." >&2; exit 1; }
	@echo "Installing $(or $(PINS),the newest of everything) into $(@D), with $$($(WITH) --version)$(PREFERS:%= (% is preferred))"
	@$(WITH) -m venv $(CLEAR) $(@D)
	@$(@D)/$(PIP) --upgrade $(PINS:%=--constraint %) pip
	@$(@D)/$(PIP) $(PINS:%=--constraint %) --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf .venv .venv-hydra14 .venv-newest .venv-oldest .venv-dist build dist *.egg-info demo demo-text multirun outputs
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
