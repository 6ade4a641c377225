# Every target sets up .venv by itself; all it takes is Python >= 3.11.
# GRADKIT_PYTHON=/path/to/python3 make ... chooses the interpreter.

VENV := .venv
PY := $(VENV)/bin/python
RACE := $(VENV)/.installed-race
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
SITE := build/docs
GENERATED := arxiv.md changelog.md contributing.md evidence.md forms.md gallery.md leaderboard.md notebooks.md rooms.md tools.md
PYTEST := $(PY) -m pytest -n 2 --dist worksteal
STEP := tests/contract/test_program.py::test_jit_equals_eager tests/contract/test_program.py::test_a_step_compiles_once
TIMES := experiments/results/test_time.txt

.PHONY: help demo test quick full landing lint format notebooks docs docs-serve clean
.DELETE_ON_ERROR:

help:
	@echo "make demo     six methods race on handwritten digits; under three minutes on two cores"
	@echo "make test     everything"
	@echo "make quick    all but the slow tests"
	@echo "make full     golden, mesh and a step of every method on XLA's default pipeline; before a release"
	@echo "make landing  everything, and a line of what it took in $(TIMES)"
	@echo "make lint     style, types, and the floors of the imports"
	@echo "make format   rewrites the sources in the house style"
	@echo "make notebooks  executes notebooks/src into notebooks/*.ipynb; NAMES=05_race for one of them"
	@echo "make docs     the site, in $(SITE)/html; make docs-serve shows it at http://localhost:8000"
	@echo "make clean    removes caches and build products (.venv stays)"

demo: $(RACE)
	@$(VENV)/bin/gradkit race

test: $(DEV)
	@$(PYTEST) --durations 10

quick: $(DEV)
	@$(PYTEST) -m "not slow"

full: $(DEV)
	@GRADKIT_TEST_PIPELINE=full $(PYTEST) tests/golden tests/parallel $(STEP)

landing: lint
	@GRADKIT_TEST_TIME=$(TIMES) $(PYTEST)

lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyrefly check
	$(VENV)/bin/lint-imports

format: $(DEV)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

notebooks: $(DOCS)
	@$(PY) notebooks/build.py $(NAMES)

docs: $(DOCS)
	@$(PY) -m sphinx --builder html --fail-on-warning --keep-going --quiet -d $(SITE)/doctrees docs $(SITE)/html
	@echo "$(SITE)/html/index.html"

docs-serve: docs
	@$(PY) -m http.server --directory $(SITE)/html --bind localhost 8000

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf docs/methods docs/api docs/notebooks docs/_static/valley.svg $(addprefix docs/,$(GENERATED))
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python without ensurepip (Debian's, until python3-venv is installed) makes environments that have no pip.
SUITS := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

$(PY):
	@for python in $${GRADKIT_PYTHON:-python3.11 python3.12 python3.13 python3.14 python3 python}; do \
	  if $$python -c '$(SUITS)' >/dev/null 2>&1; then \
	    echo "setting up $(VENV) with $$($$python --version)"; \
	    $$python -m venv --clear $(VENV) && exit 0; rm -rf $(VENV); \
	  fi; \
	done; \
	echo "gradkit needs Python >= 3.11 with its venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1

$(RACE): pyproject.toml $(PY)
	@echo "installing gradkit and what the race needs; a few minutes the first time"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[race]'
	@touch $@

$(DEV): pyproject.toml $(PY)
	@echo "installing gradkit and the tools of its tests; a few minutes the first time"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	@touch $@ $(RACE)

$(DOCS): pyproject.toml $(PY)
	@echo "installing gradkit and what its site is built with; a minute the first time"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@
