# Every target works on a fresh clone: it first makes .venv with the versions of constraints.txt, once. Images need none.
# Paths are relative, so that the directory's name may hold a space.

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
packages := actors learner cluster experiments cli
extras := aws,azure,gcs,s3
image = metagrad:$(version)-$(ACCELERATOR)
version := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

# An installation that was interrupted, lost its interpreter or was moved (scripts and the editable install hold
# absolute paths) is made anew: without its stamps every rule below runs again.
$(shell if [ -e .venv/.installing ] || [ ! -x .venv/bin/python ] || [ "$$(cat .venv/.place 2>/dev/null)" != "$$(pwd -P)" ]; \
	then rm -f .venv/.place .venv/.runtime .venv/.dev; fi)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

train: .venv/.runtime ## train one experiment: make train [EXPERIMENT=demo] [ARGS="--seed 1"]
	@exec .venv/bin/metagrad train "$(EXPERIMENT)" $(ARGS)

reproduce: .venv/.runtime ## compute a study and its report: make reproduce STUDY=NAME [ARGS="--quick"]; without STUDY: their names
	@exec .venv/bin/metagrad $(if $(STUDY),reproduce "$(STUDY)" $(ARGS),list)

# In the order of their names: files of few long tests (runs on Ray) would otherwise come last, one process waiting for the other.
test: .venv/.dev ## run the fast tests and the docstring examples, in 5 minutes: make test [ARGS="-k returns"]
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: .venv/.dev ## run every test, in hours: also slow, cluster and, with a CUDA device, gpu
	.venv/bin/python -m pytest -m "" --timeout=1800 $(ARGS)

lint: .venv/.extras ## check format, style, imports, types, spelling, that the extras install, and docker/ and deploy/ against their schemas
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

format: .venv/.dev ## rewrite the sources in the checked format
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

image: ## build the container image: make image [ACCELERATOR=cuda] [ENGINE=podman] [ARGS="--build-arg UID=1001"]
	DOCKER_BUILDKIT=1 $(ENGINE) build --file docker/Dockerfile --tag "$(image)" --build-arg ACCELERATOR=$(ACCELERATOR) $(ARGS) .

# As a stranger's cluster may confine it: its own user, nothing to write but /tmp and /runs, no capabilities, one CPU.
confined = $(ENGINE) run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --cpus 1 \
	--network none --shm-size 1g "$(image)"

test-image: ## train three updates of demo in the image, and one of Atari, with as few rights as an engine can leave it
	$(confined) train demo --updates 3
	$(confined) train atari --env.game Pong --topology colocated --environments 2 --rollout-length 4 --updates 1 --learner-threads 1

bench: .venv/.runtime alternatives ## measure, beside the alternatives, and render docs/performance.md: make bench [NAME=meta_gradient]
	.venv/bin/python -m benchmarks $(or $(NAME),all) --record $(ARGS)

alternatives: $(patsubst benchmarks/%.txt,.%/.installed,$(wildcard benchmarks/alternatives/*.txt)) ## install what the benchmarks compare with, each in an environment of its own

# The whole closure is pinned in the file; torch is the build that the registry offers, as for the project itself.
.alternatives/%/.installed: benchmarks/alternatives/%.txt
	"$(PYTHON)" -m venv --clear .alternatives/$*
	.alternatives/$*/bin/python -m pip --disable-pip-version-check install --requirement $<
	@touch $@

clean: ## remove .venv, .alternatives and every cache; runs stay
	rm -rf .venv .alternatives build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.place:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		version=$$("$(PYTHON)" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo missing); \
		echo "metagrad needs Python 3.11 or newer, and $(PYTHON) is $$version: install it, or name one: make PYTHON=python3.11 ..." >&2; \
		exit 1; }
	"$(PYTHON)" -m venv --clear .venv
	@pwd -P > $@

# torch comes first and alone: whatever build of the pinned version the registry offers for this machine stays in place
# when the rest asks for "torch". The project is built with the pinned setuptools.
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

# Asks the registry, so only when pins or extras have changed, as the installation itself does.
.venv/.extras: .venv/.dev
	@$(pip) install --dry-run --quiet --constraint constraints.txt --no-build-isolation ".[$(extras)]" || { \
		echo "the extras $(extras) do not install with the versions of constraints.txt, or no registry answers: see above" >&2; exit 1; }
	@touch $@
