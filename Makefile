# Two commands do everything on a fresh machine with Python 3.11 or newer: `make run` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p))))
VENV ?= .venv
BIN := $(VENV)/bin
FILE ?= examples/quickstart.yaml
# Development and CI pin torch: every machine then tests the same kernels.
TORCH ?= torch==2.13.0
# Files of tests that run side by side. Tests of real runs start up to six processes each, so not one for every core.
TEST_JOBS ?= 2
# Tests on a Kubernetes that run side by side, each job on a node of its own: more than two cores, since they wait a lot.
# The cluster that GALA_TEST_KUBECONFIG names is one for all.
CLUSTER_JOBS ?= $(if $(GALA_TEST_KUBECONFIG),1,4)
# Folders named operator/ and worker/ must never shadow a module, whatever the current directory is.
export PYTHONSAFEPATH := 1

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "GALA needs Python 3.11 or newer: apt-get install python3 python3-venv"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "GALA needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 2; }

$(VENV)/installed-run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e '.[worker,report,cluster]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@ $(VENV)/installed-run

install: $(VENV)/installed-run ## install GALA and what it trains with into .venv

install-dev: $(VENV)/installed-dev ## install what the tests need too

run: $(VENV)/installed-run ## train: a ring of actor-learners learns FILE (default examples/quickstart.yaml)
	$(BIN)/gala run $(FILE)

test: check test-local test-cluster ## install, check and test everything

test-local: $(VENV)/installed-dev ## test all that needs no Kubernetes
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder --ignore tests/cluster

check: $(VENV)/installed-dev ## formatting, lint, types, layering
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(VENV)/installed-dev ## generate the modules in common/gala/wire from its .proto files
	$(BIN)/python -m grpc_tools.protoc -I common --python_out=common --pyi_out=common --grpc_python_out=common common/gala/wire/*.proto

manifests: $(VENV)/installed-dev ## generate crds/galarun.yaml, the chart's copy and docs/galarun.md from gala.spec
	$(BIN)/gala crd > crds/galarun.yaml
	cp crds/galarun.yaml charts/gala-operator/files/crds/galarun.yaml
	$(BIN)/gala crd --reference > docs/galarun.md

# A Kubernetes on this machine (Debian bookworm, root): tests/cluster/node/README.md. `make deploy` uses KUBECONFIG if it
# is set, and that cluster otherwise; `eval "$$(tests/cluster/node/env.sh)"` gives the same to your shell.
NODE := tests/cluster/node
cluster-up cluster-down images deploy: export GALA_PYTHON = $(abspath $(BIN)/python)

cluster-up: | $(BIN)/python ## install a Kubernetes and start it on this machine (first time: some minutes)
	@$(NODE)/up.sh --check
	@$(NODE)/install.sh
	@$(NODE)/up.sh
	@echo 'for kubectl and helm in this shell:  eval "$$($(NODE)/env.sh)"'

cluster-down: ## end that Kubernetes; nothing of it stays but what ~/.cache/galacluster keeps for the next time
	@$(NODE)/down.sh --all

images: | $(BIN)/python ## build both images and load them into that Kubernetes, if it is up
	@$(NODE)/images/gala.sh --load

deploy: ## install the operator with these images by its chart
	@$(NODE)/deploy.sh

test-cluster: $(VENV)/installed-dev ## test on a real Kubernetes, which is built and started for it
	GALA_CLUSTER_TESTS=1 $(BIN)/python -m pytest --numprocesses $(CLUSTER_JOBS) --dist load --maxschedchunk 1 tests/cluster

clean: ## remove the virtual environment and caches (runs/ stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help install install-dev run test test-local check format proto manifests cluster-up cluster-down images deploy test-cluster clean
