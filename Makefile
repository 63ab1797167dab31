# make demo       the main job, a top-k sweep over five tasks of handwritten digits, and its baseline
# make test       every test on Hydra 1.3, then all but the training app's on Hydra 1.4
# make test-slow  the tests that take minutes each
# make check      lint, format and types
# make clean      remove what the other targets made
#
# All of them first make the virtual environment they need, again whenever a pin changes.
# PYTHON=... chooses the interpreter; the pins are for Python 3.11 and newer.

PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# Tests wait for processes much of their time: three at once keep two cores busy.
WORKERS = -n 3 --dist worksteal

DEMO = .venv/bin/python benchmarks/split_digits.py --folder demo

HYDRA13 = .venv/.installed
HYDRA14 = .venv-hydra14/.installed

PIP = bin/python -m pip install --quiet --disable-pip-version-check --constraint

.PHONY: demo test test-hydra13 test-hydra14 test-slow check clean
.NOTPARALLEL:

demo: $(HYDRA13)
	$(DEMO)

test: test-hydra13 test-hydra14

test-hydra13: $(HYDRA13)
	.venv/bin/python -m pytest $(WORKERS)

test-hydra14: $(HYDRA14)
	.venv-hydra14/bin/python -m pytest $(WORKERS) --ignore=tests/train

test-slow: $(HYDRA13)
	.venv/bin/python -m pytest -m slow

check: $(HYDRA13)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

$(HYDRA13): constraints.txt
$(HYDRA13): EXTRAS = train,ray,test,check
$(HYDRA14): constraints-hydra14.txt
$(HYDRA14): EXTRAS = test,test14

# The stamp is written last, so that an interrupted installation is done again.
.venv/.installed .venv-hydra14/.installed: setup.py
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found; name one: make PYTHON=..." >&2; exit 1; }
	@echo "Installing the packages of $(filter constraints%,$^) into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/$(PIP) $(filter constraints%,$^) pip
	@$(@D)/$(PIP) $(filter constraints%,$^) --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf .venv .venv-hydra14 build dist *.egg-info demo multirun outputs
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
