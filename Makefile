# mdaug: `make help` lists the targets. Works with GNU make 3.81 (macOS) and later.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
CONFIG ?= default
OUT ?= runs/$(CONFIG)
DATA ?=
GPUS ?= auto
NODES ?= 1
CLUSTER ?= auto
GROUP_BY ?=
MINUTES ?= 5
AUX ?=
PROFILE ?=
WAIT ?=
SAMPLES ?=
WORKERS ?=
NET ?= vgg
ARGS ?=

BIN := .venv/bin
READY := .venv/ready
REQUIREMENTS := requirements.txt requirements-dev.txt constraints.txt pyproject.toml
STAGES := simulate spectrogram pack train-vqvae reconstruct encode train-ldm distil ema generate evaluate
BENCHMARKS := $(filter-out bench-gpu%,$(patsubst benchmarks/%.py,bench-%,$(wildcard benchmarks/*.py)))

# What every way to run the stages is given. --profile and --wait only where asked for: without SLURM they are mistakes.
CHAIN = --preset '$(CONFIG)' --out '$(OUT)' $(if $(DATA),--data '$(DATA)')
SLURM = $(if $(PROFILE),--profile '$(PROFILE)') $(if $(WAIT),--wait)

.PHONY: help install demo pipeline slurm-up slurm-down test test-quick check fix prove-gpu weights constraints clean augment base $(STAGES) $(BENCHMARKS)

help:
	@echo 'make demo             all stages at small scale: simulated radar images in, synthetic shards and a report out'
	@echo 'make demo MINUTES=30 OUT=runs/longer    the same with more time, for better images'
	@echo 'make demo DATA=folder GROUP_BY=regex    the same on your images folder/<class>/*.png (see mdaug pack --help)'
	@echo 'make pipeline NODES=2 GPUS=8    all stages as one chain of SLURM jobs (see docs/cluster.md)'
	@echo 'make augment DATA=folder GROUP_BY=regex AUX=folder    how to train a classifier on few images, chosen by the data (README.md)'
	@echo 'make base             a base model in half an hour, of simulated images or of DATA=folder, to start few images from'
	@echo 'make test             the tests (make test-quick: those of one process, a few minutes)'
	@echo 'make check            lint, format and types, as in CI; make fix mends what can be mended'
	@echo ''
	@echo 'make simulate         labelled image folder from physics'
	@echo 'make spectrogram ARGS="--data_dir recordings --preset glasgow"    raw radar recordings -> labelled image folder'
	@echo 'make pack             image folder -> tar shards + index, split by group'
	@echo 'make train-vqvae      VQ-VAE on packed images'
	@echo 'make reconstruct      what the VQ-VAE keeps of held-out images: table, JSON, picture strip'
	@echo 'make encode           packed images -> latent shards with their mean and std'
	@echo 'make train-ldm        latent diffusion model'
	@echo 'make distil           that model fine-tuned to sample in 1 to 4 steps'
	@echo 'make ema ARGS="--reconstruct 0.075"     averaged diffusion model of another length, after the training'
	@echo 'make generate         labelled synthetic tar shards (SAMPLES=1000000 WORKERS=64: a job array)'
	@echo 'make evaluate         fidelity and usefulness, with a report (WORKERS=8: a job array)'
	@echo ''
	@echo 'make weights          fetch the weights of the perceptual loss, NET=vgg, alex or squeeze (needs a network)'
	@echo 'make slurm-up         a SLURM of two nodes on this machine, to try things (root; make slurm-down ends it)'
	@echo 'make bench-NAME       run benchmarks/NAME.py'
	@echo 'make prove-gpu        all that only a GPU can show, in an hour: ARGS="--minutes 25 --only tests,bench" (benchmarks/README.md)'
	@echo 'make install          make or refresh .venv (the other targets do it when needed)'
	@echo 'make clean            remove .venv and caches, never runs/'
	@echo ''
	@echo 'variables  (value now)'
	@echo 'DATA       image folder <class>/*.png to pack           ($(if $(DATA),$(DATA),OUT/images))'
	@echo 'CONFIG     preset: the name of a YAML file in configs/  ($(CONFIG); make demo: demo)'
	@echo 'OUT        folder for the results of all stages         (runs/CONFIG)'
	@echo 'GPUS       ranks per machine: a number, or auto         ($(GPUS); make demo: 1)'
	@echo 'MINUTES    make demo: how long all stages take together ($(MINUTES))'
	@echo 'NODES      machines                                     ($(NODES))'
	@echo 'CLUSTER    auto (slurm where sbatch is), slurm, local (ranks here) or inline (1 rank)  ($(CLUSTER))'
	@echo 'PROFILE    what the SLURM cluster needs to know, such as configs/launch/gpu-cluster.yaml  ($(PROFILE))'
	@echo 'SAMPLES    number of images to generate                 ($(SAMPLES); else that of the preset)'
	@echo 'WORKERS    generate, evaluate, augment: an array of so many SLURM jobs   ($(WORKERS))'
	@echo 'WAIT       1: stay until the SLURM job has ended        ($(WAIT))'
	@echo 'GROUP_BY   what pack must not split between train and val (also for augment, demo, pipeline; see mdaug pack --help)'
	@echo 'AUX        images of other people, sites or sensors for augment, demo and pipeline, packed or an image folder  ($(AUX))'
	@echo 'ARGS       further flags of the stage, such as ARGS="--epochs 3"'
	@echo 'PYTHON     interpreter 3.10-3.13 that makes .venv       ($(PYTHON))'

install: $(READY)

$(READY): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "error: $(PYTHON) is not Python 3.10-3.13; name one, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo "error: $(PYTHON) cannot make a virtual environment (Debian, Ubuntu: apt install python3-venv)" >&2; rm -rf .venv; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@test -w "$${XDG_CACHE_HOME:-$$HOME/.cache}" || test -w "$$HOME" || export UV_CACHE_DIR="$$PWD/.venv/uv-cache"; \
	  $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode \
	    -r requirements.txt -r requirements-dev.txt -c constraints.txt -e .
	@touch $@

demo: CONFIG = demo
demo: $(READY)
	@$(BIN)/python -m launch.demo $(CHAIN) --gpus_per_node $(GPUS:auto=1) $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(GROUP_BY),--group_by '$(value GROUP_BY)') $(if $(AUX),--aux '$(AUX)') $(ARGS)

pipeline: $(READY)
	@$(BIN)/python -m launch.pipeline $(CHAIN) --nodes $(NODES) --gpus_per_node $(GPUS) $(SLURM) \
	  $(if $(GROUP_BY),--group_by '$(value GROUP_BY)') $(if $(AUX),--aux '$(AUX)') $(ARGS)

slurm-up:
	@tests/slurm/cluster.sh up
slurm-down:
	@tests/slurm/cluster.sh down

# One thread for each process: the tests run several, and compare sums of one rank and of many to the last bit. Two files
# at a time: much of what the tests do is waiting. ARGS="-n 0" takes one after the other.
test: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 $(ARGS)

test-quick: $(READY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 tests/unit -m 'not gpu and not slow' $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The folders of a stage stand in launch/stages.py.
generate: ASKED = $(if $(SAMPLES),--num_samples $(SAMPLES))
pack: ASKED = $(if $(GROUP_BY),--group_by '$(value GROUP_BY)')
$(STAGES): $(READY)
	$(BIN)/python -m launch $@ $(CHAIN) --gpus_per_node $(GPUS) --nodes $(NODES) --cluster $(CLUSTER) $(SLURM) \
	  $(if $(WORKERS),--workers $(WORKERS)) -- $(ASKED) $(ARGS)

augment: $(READY)
	$(BIN)/python -m launch augment --out '$(OUT)' $(if $(DATA),--data '$(DATA)') --gpus_per_node $(GPUS) \
	  --nodes $(NODES) --cluster $(CLUSTER) $(SLURM) $(if $(WORKERS),--workers $(WORKERS)) \
	  -- $(if $(AUX),--aux_dir '$(AUX)') $(if $(GROUP_BY),--group_by '$(value GROUP_BY)') $(ARGS)

base: $(READY)
	$(MAKE) --no-print-directory CONFIG=base CLUSTER=inline $(if $(DATA),,simulate) pack train-vqvae encode train-ldm

weights: $(READY)
	$(BIN)/mdaug weights --net $(NET) $(ARGS)

$(BENCHMARKS): $(READY)
	$(BIN)/python benchmarks/$(@:bench-%=%).py $(ARGS)

prove-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

constraints: $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-annotate --upgrade \
	  --custom-compile-command 'make constraints' requirements.txt requirements-dev.txt -o constraints.txt

clean:
	rm -rf .venv *.egg-info build .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
