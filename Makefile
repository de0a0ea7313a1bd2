# `make demo` and `make test` do all that they need, from nothing but Python 3.11, make and git.
# Options: VENV=path (default .venv), PYTHON=interpreter, DEMO_OUT=dir, DEMO_ARGS="...", PYTEST_ARGS="...".
# The site is built in build/site.

VENV ?= .venv
PYTHON ?=
DEMO_OUT ?= demo
DEMO_ARGS ?=
PYTEST_ARGS ?=

# The stamp says that the environment matches pyproject.toml and the pins. A space in VENV must be
# escaped where make reads it; recipes quote it instead. All other paths are relative, so that the
# repository itself may stand below any directory.
empty :=
space := $(empty) $(empty)
STAMP := $(subst $(space),\ ,$(VENV))/.evostep-installed
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo article docs site drawings test lint types unit slow format schema pins clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## polish a network, then compare arms, on real data; figures and page in DEMO_OUT
	"$(BIN)/python" examples/polish_digits.py --out "$(DEMO_OUT)/polish"
	"$(MAKE)" article

article: $(STAMP) ## the article's comparison in small, with the control to beat
	"$(BIN)/evostep" compare --train-size 200 --generations 2 --seeds 4 --threads 1 --out "$(DEMO_OUT)/article" $(DEMO_ARGS)
	@echo "The page: $$(cd "$(DEMO_OUT)/article" && pwd)/report.html"

docs: $(STAMP) ## run the examples, and build the documentation site with what they print and draw
	"$(BIN)/python" -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[black-box]'
	"$(BIN)/python" website/examples.py --out build/examples
	"$(MAKE)" site

site: $(STAMP) ## build the documentation site, strictly: build/site/index.html
	"$(BIN)/python" website/stage.py --out build/pages --source build/source --examples build/examples
	NO_MKDOCS_2_WARNING=1 "$(BIN)/python" -m mkdocs build --strict --quiet
	@echo "The site: $$(pwd)/build/site/index.html"

drawings: $(STAMP) ## draw the pictures of docs/ again
	"$(BIN)/python" website/drawings.py --out docs/figures

test: lint types unit ## lint, types and tests: what must pass before a change lands

lint: $(STAMP) ## ruff: rules and format
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

types: $(STAMP) ## mypy on the package
	"$(BIN)/mypy"

unit: $(STAMP) ## the tests and the docstring examples, without the slow ones
	"$(BIN)/python" -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

slow: $(STAMP) ## the slow tests alone
	"$(BIN)/python" -m pytest -m slow $(PYTEST_ARGS)

format: $(STAMP) ## mend what ruff can mend
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

schema: $(STAMP) ## write what the command line knows of methods, rules, engines and options
	"$(BIN)/python" -m evostep.cli.schema --write

# CUDA wheels are left out: torch itself requires exact versions of them where it needs them.
pins: $(STAMP) ## write the environment's versions to constraints.txt
	"$(BIN)/python" -m pip freeze --all --exclude pip --exclude-editable > constraints.frozen
	grep '^#' constraints.txt > constraints.new
	grep -vE '^(cuda-|nvidia-|triton=)' constraints.frozen | sed 's/+[a-z0-9.]*$$//' >> constraints.new
	mv constraints.new constraints.txt
	rm constraints.frozen

clean: ## remove caches and builds; leaves .venv and results alone
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last, so an install that fails or is interrupted is tried again. The build
# backend comes first and isolation is off, so that the pins hold for it too.
$(STAMP): pyproject.toml constraints.txt src/evostep/_version.py
	@set -e; \
	check='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [ ! -x "$(BIN)/python" ]; then \
	  found=; \
	  for candidate in "$(PYTHON)" python3.11 python3; do \
	    if [ -n "$$candidate" ] && "$$candidate" -c "$$check" >/dev/null 2>&1; then \
	      found=$$candidate; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "evostep needs Python 3.11 or newer, and neither python3.11 nor python3 is that:" \
	      "install it, or name one with make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv "$(VENV)" || { \
	    rm -f "$(BIN)/python"; \
	    echo "$$found could not create $(VENV): on Debian or Ubuntu, apt install python3-venv" >&2; \
	    exit 1; \
	  }; \
	fi; \
	"$(BIN)/python" -c "$$check" || { \
	  echo "$(VENV) has $$("$(BIN)/python" --version), older than 3.11:" \
	    "delete it, or name another with make VENV=path" >&2; \
	  exit 1; \
	}
	"$(BIN)/python" -m pip install -c constraints.txt hatchling editables
	"$(BIN)/python" -m pip install -c constraints.txt --no-build-isolation -e '.[lab,dev,docs,integrations]'
	@touch "$@"
