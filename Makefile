# make demo | test | check | lint | clean. Everything needed is set up in .venv first.
# PYTHON=... chooses the interpreter, TORCH_INDEX=... the build of torch (empty: pip's default).
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
# the CPU build unless an NVIDIA driver is there
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
export MUJOCO_GL ?= egl
export RL_WARNINGS ?= 0

.PHONY: demo test check lint setup gl clean

demo: setup gl
	$(BIN)/reverie demo $(DEMO_ARGS)

test: setup gl ## everything but gpu and nightly, at most 20 minutes on 2 cores
	$(BIN)/python -m pytest -n auto -m "not gpu and not nightly" $(PYTEST_ARGS)

check: setup gl ## the fast part, under 90 seconds
	$(BIN)/python -m pytest -n auto -m "not gpu and not nightly and not slow and not learn" $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.stamp-installed

$(VENV)/.stamp-installed: pyproject.toml .ci/install
	TORCH_INDEX="$(TORCH_INDEX)" .ci/install "$(VENV)"
	touch $@

gl:
	@REVERIE_PYTHON="$(BIN)/python" .ci/gl

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
