# The project's commands, in one place. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup demo laptop laptop-check paper ablations test lint clean constraints up-local down-local

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev,huggingface,serve,cluster,services
# uv does not read pip's settings: those that say where packages lie are passed on.
UV := UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(if $(PIP_INDEX_URL),UV_DEFAULT_INDEX="$(PIP_INDEX_URL)") $(BIN)/uv
# Models this small gain nothing from threads that spin while they wait.
export OMP_WAIT_POLICY := PASSIVE
# Large tensors in large pages: memory that is taken anew at every step is mapped several times faster.
export THP_MEM_ALLOC_ENABLE := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: .venv/installed  ## install everything into .venv, at the pinned versions

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: setup  ## run the whole pipeline on the miniature, promote the model, print the results table
	$(BIN)/python -m flows.demo

paper: setup  ## train and compare the variants, from several seeds each, several at once; goes on where it was stopped
	$(BIN)/python -m flows.experiments paper

ablations: setup  ## train the ablations, likewise
	$(BIN)/python -m flows.experiments ablations

laptop: setup  ## train and judge on real models and human voices, two cores, 1 to 2 h (CORPUS=folder of the recordings)
	$(BIN)/python -m flows.laptop $(if $(CORPUS),--corpus $(CORPUS))

laptop-check: setup  ## fetch the real weights and ask the shipped adapter spoken questions
	$(BIN)/python -m flows.laptop --check

test: setup  ## run all tests
	$(BIN)/python -m pytest

lint: setup  ## check style and types, and that no file holds a secret
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	.ci/check_secrets

clean:  ## remove what the pipeline made (not the environment, not DVC's cache)
	rm -rf models data/corpus data/continuations reports/answers.html reports/answers.parquet reports/continuations.html reports/data_docs mlruns mlartifacts mlflow.db

up-local: setup  ## start PostgreSQL, S3, MLflow, Prefect and a worker on this machine, without Docker (STATE=folder)
	$(BIN)/python -m infra.local up $(if $(STATE),--state $(STATE))

down-local: setup  ## stop them; what they hold stays
	$(BIN)/python -m infra.local down $(if $(STATE),--state $(STATE))

constraints: setup  ## pin anew the versions of all dependencies, for every platform
	echo torch==2.13.0 | $(BIN)/uv pip compile --quiet --universal --all-extras --python-version 3.11 \
	    --no-header --no-annotate --constraint - --output-file constraints.txt pyproject.toml
