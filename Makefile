# Needs Python 3.11 or newer with venv and pip, and make; everything else goes into .venv, from locked requirements.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8

# Wheels only: building a source package would fetch build tools that no lock names.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check -qq install
LOCKED := $(INSTALL) --require-hashes --only-binary :all: -r requirements/build.txt
PROJECT := $(INSTALL) --no-index --no-deps --no-build-isolation --editable .
COMPILE_ONE = UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --python-version 3.11 \
	--generate-hashes --no-emit-package pagefleet --strip-extras $(if $(UPGRADE),--upgrade)
COMPILE = $(COMPILE_ONE) --universal

.DEFAULT_GOAL := help
.PHONY: help run gpu test image-test lint format schema lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

run: $(VENV)/.run ## Read the documents in samples/ and write the results to out/samples
	@rm -rf out/samples
	@$(BIN)/pagefleet run samples --out out/samples

gpu: $(VENV)/.gpu ## Install what vision models and TrOCR need: torch, transformers

test: $(VENV)/.dev ## Run the whole test suite; ARGS="tests/worker -k tiff" runs a part of it
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --max-worker-restart 0 $(ARGS)

image-test: $(VENV)/.run ## Build the worker's image with Docker or buildah, and see it work
	@$(BIN)/python .ci/image_test.py

lint: $(VENV)/.dev ## Check style, format, types, workflows and the Dockerfile
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted as agreed: run 'make format'." >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/actionlint
	@$(BIN)/zizmor --quiet --offline --persona pedantic --config .github/zizmor.yml .github > $(VENV)/zizmor.txt \
		|| { cat $(VENV)/zizmor.txt; exit 1; }
	@$(BIN)/hadolint worker/Dockerfile

format: $(VENV)/.dev ## Put code into the agreed format
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

schema: $(VENV)/.run ## Write docs/schema.json anew after a change of worker/contract.py
	@$(BIN)/python -c 'import json; from worker.contract import json_schema as schema; print(json.dumps(schema(), indent=2))' \
		> docs/schema.json

lock: $(VENV)/.dev ## Write requirements/ anew after a change of pyproject.toml; UPGRADE=1 takes the newest releases
	@$(INSTALL) uv==$(UV_VERSION)
	@$(COMPILE) pyproject.toml --output-file requirements/base.txt
	@$(COMPILE) --group build --constraint requirements/base.txt --output-file requirements/build.txt
	@$(COMPILE) pyproject.toml --extra gpu --constraint requirements/base.txt --output-file requirements/gpu.txt
	@$(COMPILE_ONE) --python-platform x86_64-manylinux_2_28 --group vllm --output-file requirements/vllm.txt
	@$(COMPILE) pyproject.toml --extra dev --constraint requirements/gpu.txt --constraint requirements/build.txt \
		--output-file requirements/dev.txt
	@$(COMPILE) pyproject.toml --extra infra --constraint requirements/dev.txt --output-file requirements/infra.txt
	@sed -n 's/^pulumi==\([0-9.]*\).*/\1/p' requirements/infra.txt > .github/pulumi-version

clean: ## Remove everything that make made
	@rm -rf $(VENV) out build dist .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: what is installed is installed again only when its lock or pyproject.toml has changed.
$(VENV)/.run: requirements/base.txt requirements/build.txt pyproject.toml | $(VENV)/.made
	@echo "Installing what Pagefleet needs into $(VENV) (about 850 MB, once) ..."
	@$(LOCKED) -r requirements/base.txt
	@$(PROJECT)
	@touch $@

$(VENV)/.dev: requirements/dev.txt requirements/torch-cpu.txt requirements/gpu.txt $(VENV)/.run
	@echo "Installing the development tools into $(VENV) ..."
	@$(LOCKED) -r requirements/dev.txt
	@$(INSTALL) --no-deps --require-hashes -r requirements/torch-cpu.txt 2>/dev/null || $(LOCKED) -r requirements/gpu.txt
	@touch $@

$(VENV)/.gpu: requirements/gpu.txt $(VENV)/.run
	@echo "Installing torch and transformers into $(VENV) (about 5 GB, once) ..."
	@$(LOCKED) -r requirements/gpu.txt
	@touch $@

# To run the Pulumi program, and no more: what a deployment needs.
$(VENV)/.infra: requirements/infra.txt $(VENV)/.run
	@echo "Installing what the Pulumi program needs into $(VENV) ..."
	@$(LOCKED) -r requirements/infra.txt
	@touch $@

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON). Install Python 3.11 or newer, or name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); Pagefleet needs 3.11 or newer. Name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) can't make virtual environments. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $@
