# make demo | imitation | test | check | lint | clean. Everything needed is set up in .venv first.
# make test-metaworld sets up .venv-metaworld: Meta-World pins an old MuJoCo.
# PYTHON=... chooses the interpreter, TORCH_INDEX=... the build of torch (empty: pip's default).
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
METAWORLD_VENV ?= .venv-metaworld
METAWORLD_BIN := $(METAWORLD_VENV)/bin
# the CPU build unless an NVIDIA driver is there
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
export MUJOCO_GL ?= egl
export RL_WARNINGS ?= 0

.PHONY: demo imitation test test-gpu test-metaworld check lint setup setup-metaworld gl browser clean

demo: setup gl
	$(BIN)/reverie demo $(DEMO_ARGS)

imitation: setup-metaworld ## ACT-JEPA beside ACT, BC and a collapsed control on six Meta-World tasks
	$(METAWORLD_BIN)/reverie bench imitation $(IMITATION_ARGS)

test: setup gl browser ## everything but gpu, nightly and metaworld, at most 20 minutes on 2 cores
	$(BIN)/python -m pytest -n auto -m "not gpu and not nightly and not metaworld" $(PYTEST_ARGS)

test-gpu: setup gl ## what needs a CUDA device
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make test-gpu: no CUDA device that this torch can use; see reverie doctor")'
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

test-metaworld: setup-metaworld ## what needs Meta-World
	@REVERIE_PYTHON="$(METAWORLD_BIN)/python" .ci/gl
	$(METAWORLD_BIN)/python -m pytest -m "metaworld and not gpu and not nightly" $(PYTEST_ARGS)

check: setup gl ## the fast part, under 90 seconds
	$(BIN)/python -m pytest -n auto -m "not gpu and not nightly and not slow and not learn and not metaworld" $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.stamp-installed

$(VENV)/.stamp-installed: pyproject.toml .ci/install
	TORCH_INDEX="$(TORCH_INDEX)" .ci/install "$(VENV)"
	touch $@

setup-metaworld: $(METAWORLD_VENV)/.stamp-installed

$(METAWORLD_VENV)/.stamp-installed: pyproject.toml .ci/install
	TORCH_INDEX="$(TORCH_INDEX)" EXTRAS=test,metaworld .ci/install "$(METAWORLD_VENV)"
	touch $@

gl:
	@REVERIE_PYTHON="$(BIN)/python" .ci/gl

browser: ## what opens report pages in tests
	@.ci/browser

clean:
	rm -rf $(VENV) $(METAWORLD_VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
