# `make run` and `make test` need Python 3.11.4 or newer and a C compiler, and nothing else prepared.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODELS ?= tiny.en
IMAGE ?= whisper-byoc
FOLDERS := whisper_byoc whisper_bench whisper_sim scripts tests examples
SPEECH ?= ../shared/speech

.DEFAULT_GOAL := help
.PHONY: help install bake bake-test gateway-peer node-peer run demo test test-conformance check format bench bench-batch bench-cuda image settings clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# torch comes with what its own build asks for; openai-whisper without triton, which only its CUDA
# build uses and torch's CUDA build brings along.
$(VENV)/installed: constraints.txt constraints-dev.txt pyproject.toml $(wildcard whisper_byoc/inference/kernels/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "Python 3.11.4 or newer is needed, this is " + sys.version)'
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

# livepeer-gateway needs Python 3.12. Where there is none, or it cannot be installed, its one test
# is skipped and says so.
GATEWAY := .venv-gateway
NEWER = $(shell for python in python3.14 python3.13 python3.12 $(PYTHON) $(HOME)/.pyenv/versions/3.1[2-9].*/bin/python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$python && break; done)

gateway-peer: $(if $(NEWER),$(GATEWAY)/installed)  ## livepeer-gateway, to test against

$(GATEWAY)/installed: constraints-gateway.txt
	-$(NEWER) -m venv $(GATEWAY) && $(GATEWAY)/bin/python -m pip install --quiet --no-deps --requirement constraints-gateway.txt && touch $@

# OpenAI's client for Node; its one test is skipped where there is no npm, or nothing to install from.
NODE := .node

node-peer: $(if $(shell command -v npm),$(NODE)/installed)  ## OpenAI's client for Node, to test with

$(NODE)/installed:
	-npm install --prefix $(NODE) --no-audit --no-fund --silent openai@6.49.0 && touch $@

# Most tests wait for sockets more than they compute. A file's tests stay together, since they share
# services.
TOGETHER := -n 3 --dist loadfile

test: bake-test gateway-peer node-peer  ## install, bake and run every test
	$(BIN)/python -m pytest $(TOGETHER)

test-conformance: install  ## the 36 cases of a trickle server against TRICKLE_BASE=http://host/ai/trickle/
	TRICKLE_BASE=$(TRICKLE_BASE) $(BIN)/python -m pytest tests/trickle/test_conformance.py

check: install  ## format, lint, types and the C compiler's warnings
	$(BIN)/ruff format --check $(FOLDERS)
	$(BIN)/ruff check $(FOLDERS)
	$(BIN)/mypy --strict $(FOLDERS)
	$(BIN)/python scripts/build_native.py -Wall -Wextra -Werror

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

settings: install  ## write the table of settings into docs/settings.md
	$(BIN)/python scripts/write_settings.py

clean:
	rm -rf $(VENV) $(GATEWAY) $(NODE) .mypy_cache .pytest_cache .ruff_cache .hypothesis
