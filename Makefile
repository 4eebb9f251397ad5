# Everything runs in an environment of its own, .venv, which make creates when it is missing
# and brings up to date when pyproject.toml or constraints.txt has changed.
#
#   make test PYTHON=python3.12 VENV=.venv312    another Python, beside the first
#   make lab ARGS=--no-browser                   options for the command itself

VENV ?= .venv
PY := $(VENV)/bin/python

# Try each by running it: a name on the PATH can be the wrong version or an empty shim.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$name; break; }; done)

.DEFAULT_GOAL := help
# Half an environment would pass for a whole one on the second run.
.DELETE_ON_ERROR:
.PHONY: help lab test chapters book book-check bench real retrain clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lab: $(VENV)/.installed-lab ## Open chapter 00 in JupyterLab
	$(PY) -m jupyterlab $(ARGS) chapters/00-start-here.ipynb

# Two processes of one thread each: faster than one of two, since most steps are small. A chapter's
# cells belong together, so whole files are dealt out.
test: $(VENV)/.installed-test ## Check style and types, run the tests and every chapter
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

chapters: $(VENV)/.installed-test ## Run every chapter again and clean it (ARGS=09: only that one)
	$(PY) book/build.py $(ARGS)

book: $(VENV)/.installed-test ## Build the book as a site, with the live page, in build/site
	$(PY) book/live/build.py build/live
	$(PY) book/site/make_site.py

book-check: book ## Look at every page of the site in a browser, and at every picture of the live page
	$(PY) book/site/check_site.py
	SDLEARN_LIVE=all OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_live.py $(ARGS)

bench: $(VENV)/.installed-test ## Print how fast and how large sdlearn is on this machine
	$(PY) tests/bench.py $(ARGS)

real: $(VENV)/.installed-test ## Draw with a model of Stable Diffusion 1.5's full size and random weights
	$(PY) tests/sd15.py build/sd15 --full --draw 2

retrain: $(VENV)/.installed-train ## Train the postcards model again, from nothing
	$(PY) -m sdlearn.training $(ARGS)

clean: ## Remove the environment, the caches and the builds
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The chapters print the same text on every machine only with the same model,
# on the same device, and a test that reaches for the network would not pass on every machine.
test chapters book book-check bench: export SDLEARN_MODEL = postcards
test chapters book book-check bench: export SDLEARN_DEVICE = cpu
test chapters book book-check bench: export HF_HUB_OFFLINE = 1

$(PY):
	@test -n "$(PYTHON)" || { echo "sdlearn needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) lacks the venv module; on Debian and Ubuntu: sudo apt install $(notdir $(PYTHON))-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@
