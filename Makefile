# Needs Python >= 3.11 and make; everything else goes into .venv and .tox beside this file.
PYTHON ?= python3
TOX = .venv/bin/tox
ARGS ?=
DOCS_TESTS = tests/test_docs.py tests/test_architecture_doc.py tests/expressions/test_docs.py tests/service/test_docs_testing_plugins.py \
	plugins/telemetry/tests/test_docs.py plugins/transform-standard/tests/test_docs.py

.DEFAULT_GOAL := help
.PHONY: help demo test bench chaos lint types layers docs plugins wheels peers reference constraints clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 22
	@echo '  Arguments go through ARGS, as in: make test ARGS="-k expressions -x"'

demo: $(TOX)  ## set up, build and serve the example on http://localhost:8000
	@$(TOX) run -qq -e demo -x testenv:demo.commands=
	@exec .tox/demo/bin/python -m example $(ARGS)

test: $(TOX)  ## run every test
	@$(TOX) run -q -e tests $(if $(ARGS),-- $(ARGS))

peers: $(TOX)  ## install the model servers that the tests speak to and that need an environment of their own
	@$(TOX) run -q -e mlserver

bench: $(TOX)  ## measure against hand-written handlers
	@$(TOX) run -q -e bench $(if $(ARGS),-- $(ARGS))

chaos: $(TOX)  ## put the service under fault and load, print what holds: ARGS="--rows down,hangs --quick"
	@$(TOX) run -q -e tests -x testenv:tests.commands="python -m tests.chaos $(ARGS)"

docs: $(TOX)  ## run the code in README and docs, follow their links
	@$(TOX) run -q -e tests -- $(DOCS_TESTS) $(ARGS)

lint types layers wheels: $(TOX)
	@$(TOX) run -q -e $@ $(if $(ARGS),-- $(ARGS))

plugins: $(TOX)  ## run each plugin's tests with nothing but the core beside it
	@$(TOX) run -q -f plugin $(if $(ARGS),-- $(ARGS))

lint:  ## ruff, both the checks and the format
types:  ## mypy, strict
layers:  ## import-linter: who may import whom
wheels:  ## build the wheels, install each one alone, look at what came with it

reference: $(TOX)  ## write docs/reference anew, from the option classes
	@$(TOX) run -q -e tests -x testenv:tests.commands="python -m orchestrator_core.reference"

constraints: $(TOX)  ## write constraints.txt anew, with today's versions
	@$(TOX) run -q -e constraints
	@.tox/constraints/bin/python -m pip freeze --exclude-editable > constraints.txt

clean:  ## remove what the other targets made
	@[ ! -x .tox/demo/bin/python ] || .tox/demo/bin/python -m example --clean
	rm -rf .venv .tox .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage

$(TOX):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed and $(PYTHON) is %s; name another: make PYTHON=python3.12" % sys.version.split()[0])'
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -q --disable-pip-version-check "tox>=4.30,<5" -c constraints.txt
	@touch $(TOX)
