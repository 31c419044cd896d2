# `make run` and `make test` need Python 3.11 or newer and a C compiler, and nothing else prepared.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODELS ?= tiny.en
IMAGE ?= whisper-byoc
FOLDERS := whisper_byoc scripts tests
SPEECH ?= ../shared/speech

.DEFAULT_GOAL := help
.PHONY: help install bake bake-test run demo test check format bench bench-batch bench-cuda image readme lock clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# torch comes with what its own build asks for; openai-whisper without triton, which only its CUDA
# build uses and torch's CUDA build brings along.
$(VENV)/installed: constraints.txt constraints-dev.txt pyproject.toml $(wildcard whisper_byoc/native/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --requirement constraints.txt --requirement constraints-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

install: $(VENV)/installed  ## the virtual environment, pinned

bake: install  ## the weights of MODELS into models/
	$(BIN)/python scripts/bake_model.py $(MODELS)

bake-test: install
	$(BIN)/python scripts/bake_model.py tiny.en base

run: bake  ## install, bake and serve on port 8000
	$(BIN)/whisper-byoc serve

demo: bake  ## serve, speak three sentences into it, print the transcript, stop
	$(BIN)/python scripts/demo.py

test: bake-test  ## install, bake and run every test
	$(BIN)/python -m pytest

check: install  ## format, lint and types
	$(BIN)/ruff format --check $(FOLDERS)
	$(BIN)/ruff check $(FOLDERS)
	$(BIN)/mypy --strict $(FOLDERS)

format: install
	$(BIN)/ruff format $(FOLDERS)
	$(BIN)/ruff check --fix $(FOLDERS)

BENCH = $(BIN)/python scripts/benchmark.py offline --manifest $(SPEECH)/manifest.tsv $(SETS:%=--filter en/%/) --profile
SETS ?= librispeech accent noisy phone

bench: bake  ## word error rate and speed against the peers, one file at a time
	$(BENCH) --peers openai,faster-whisper

bench-batch: bake  ## the same, eight files at a time
	$(BENCH) --peers openai,faster-whisper,faster-whisper-batched --batch 8

bench-cuda: bake  ## ours on a CUDA device, 64 files at a time
	$(BENCH) --device cuda --batch 64

image:  ## the container image
	docker build --file Dockerfile.whisper --build-arg MODELS="$(MODELS)" --tag $(IMAGE) .

readme: install  ## write the settings table into the README
	$(BIN)/python scripts/write_readme.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
