# Every target works on a fresh clone: it first creates .venv with the versions of constraints.txt, once; images need none.
# Paths are relative, so the directory's name may contain a space.

PYTHON ?= python3
EXPERIMENT ?= demo
STUDY ?=
ARGS ?=
NAME ?=
ENGINE ?= docker
ACCELERATOR ?= cpu

MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.PHONY: help train reproduce test test-all lint format image test-image bench alternatives clean

pip := .venv/bin/python -m pip --disable-pip-version-check
# The folders that metagrad/ links to.
packages := $(shell find metagrad -maxdepth 1 -type l -exec basename {} \;)
extras := ale-snapshots,aws,azure,gcs,onnx,s3,trackio,tune,wandb
image = metagrad:$(version)-$(ACCELERATOR)
version := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

# Redo an installation that was interrupted, lost its interpreter or was moved (scripts and the editable install contain
# absolute paths): without its stamps every rule below runs again.
$(shell if [ -e .venv/.installing ] || [ ! -x .venv/bin/python ] || [ "$$(cat .venv/.place 2>/dev/null)" != "$$(pwd -P)" ]; \
	then rm -f .venv/.place .venv/.runtime .venv/.dev; fi)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

train: .venv/.runtime ## train one experiment: make train [EXPERIMENT=demo] [ARGS="--seed 1"]
	@exec .venv/bin/metagrad train "$(EXPERIMENT)" $(ARGS)

reproduce: .venv/.runtime ## compute a study and its report: make reproduce STUDY=NAME [ARGS="--quick"]; without STUDY list them
	@exec .venv/bin/metagrad $(if $(STUDY),reproduce "$(STUDY)" $(ARGS),list)

# Files run in the order of their names: those with few long tests (runs on Ray) would otherwise come last, on one process.
test: .venv/.dev ## run the fast tests and the docstring examples (5 minutes): make test [ARGS="-k returns"]
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: .venv/.dev ## run every test (hours), including slow, cluster and, with a CUDA device, gpu
	.venv/bin/python -m pytest -m "" --timeout=1800 $(ARGS)

lint: .venv/.extras ## check format, style, imports, types, spelling, the extras, and docker/ and deploy/ against their schemas
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports --no-logo
	.venv/bin/mypy
	.venv/bin/python -m compileall -q metagrad $(packages)
	.venv/bin/codespell
	.venv/bin/yamllint --strict docker deploy
	.venv/bin/hadolint docker/Dockerfile
	.venv/bin/shellcheck docker/*.sh deploy/slurm/*.sh
	.venv/bin/python deploy/check.py

format: .venv/.dev ## apply the formatter
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

image: ## build the container image: make image [ACCELERATOR=cuda] [ENGINE=podman] [ARGS="--build-arg UID=1001"]
	DOCKER_BUILDKIT=1 $(ENGINE) build --file docker/Dockerfile --tag "$(image)" --build-arg ACCELERATOR=$(ACCELERATOR) $(ARGS) .

# Confine it as a strict cluster might: its own user, only /tmp and /runs writable, no capabilities, one CPU.
confined = $(ENGINE) run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --cpus 1 \
	--network none --shm-size 1g "$(image)"

test-image: ## train three updates of demo and one of Atari in the image, with as few rights as possible
	$(confined) train demo --updates 3
	$(confined) train atari --env.game Pong --topology colocated --environments 2 --rollout-length 4 --updates 1 --learner-threads 1

bench: .venv/.runtime alternatives ## run the benchmarks against alternative libraries and render docs/performance.md: make bench [NAME=meta_gradient]
	.venv/bin/python -m benchmarks $(or $(NAME),all) --record $(ARGS)

alternatives: $(patsubst benchmarks/%.txt,.%/.installed,$(wildcard benchmarks/alternatives/*.txt)) ## install the alternative libraries, each in its own environment

# The file pins the whole closure; torch is the build that the registry offers, as for the project itself.
.alternatives/%/.installed: benchmarks/alternatives/%.txt
	"$(PYTHON)" -m venv --clear .alternatives/$*
	.alternatives/$*/bin/python -m pip --disable-pip-version-check install --requirement $<
	@touch $@

clean: ## remove .venv, .alternatives and every cache, but no runs
	rm -rf .venv .alternatives build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.place:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		version=$$("$(PYTHON)" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo missing); \
		echo "metagrad needs Python 3.11 or newer, and $(PYTHON) is $$version: install it, or name one: make PYTHON=python3.11 ..." >&2; \
		exit 1; }
	"$(PYTHON)" -m venv --clear .venv
	@pwd -P > $@

# torch is installed first and alone, so that the registry's build of the pinned version for this machine stays in place
# when other packages require "torch". The project is built with the pinned setuptools.
.venv/.runtime: .venv/.place pyproject.toml constraints.txt
	@touch .venv/.installing
	$(pip) install --constraint constraints.txt torch
	$(pip) install --constraint constraints.txt setuptools
	$(pip) install --constraint constraints.txt --no-build-isolation --editable .
	@rm .venv/.installing && touch $@

.venv/.dev: .venv/.runtime
	@touch .venv/.installing
	$(pip) install --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	@rm .venv/.installing && touch $@

# This asks the registry, so it runs only when pins or extras have changed, like the installation itself.
.venv/.extras: .venv/.dev
	@$(pip) install --dry-run --quiet --constraint constraints.txt --no-build-isolation ".[$(extras)]" || { \
		echo "the extras $(extras) do not install with the versions of constraints.txt, or no registry answers: see above" >&2; exit 1; }
	@touch $@
