# Everything runs from a fresh clone: Python 3.11 to 3.13, make and git are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_SEED ?= 42

.PHONY: help setup demo demo-joint smoke test lint types format parity fuzz test-slow test-order torture crashes chaos bench docs photos iabn lock clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make the environment in .venv, from the lock file

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"plop needs Python 3.11 to 3.13; $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'uv>=0.9'
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $(READY)

demo: setup  ## generated data, PLOP and FT on 15-1, both tables, pictures: some minutes on two cores
	$(BIN)/plop download toy
	$(BIN)/plop run-scenario --dataset toy --task 15-1 --method plop --seed $(DEMO_SEED) --run runs/demo-plop --resume
	$(BIN)/plop run-scenario --dataset toy --task 15-1 --method ft --seed $(DEMO_SEED) --run runs/demo-ft --init-from runs/demo-plop --resume
	$(BIN)/plop visualize runs/demo-plop runs/demo-ft --count 5 --output runs/demo-pictures
	$(BIN)/plop report runs/demo-plop runs/demo-ft

demo-joint: setup  ## the upper bound beside the demo: all classes at once
	$(BIN)/plop run-scenario --dataset toy --task 15-1 --method joint --seed $(DEMO_SEED) --run runs/demo-joint --resume
	$(BIN)/plop report runs/demo-plop runs/demo-ft runs/demo-joint

smoke: setup  ## the whole line in a minute, on few images; its numbers mean nothing
	$(BIN)/plop download toy --data-root runs/smoke/data --train 96 --val 16 --test 32
	$(BIN)/plop run-scenario --dataset toy --data-root runs/smoke/data --method plop --epochs 1 --epochs-later 1 --run runs/smoke/plop --overwrite
	$(BIN)/plop run-scenario --dataset toy --data-root runs/smoke/data --method ft --epochs 1 --epochs-later 1 --run runs/smoke/ft --init-from runs/smoke/plop --overwrite
	$(BIN)/plop evaluate runs/smoke/plop/checkpoints/step-5.pt
	$(BIN)/plop visualize runs/smoke/plop --count 2
	$(BIN)/plop report runs/smoke/plop runs/smoke/ft

test: setup lint types  ## lint, types and tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" --numprocesses auto --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

format: setup  ## bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: setup  ## golden values of the original alone; PLOP_PARITY=DIR takes those of a folder
	$(BIN)/pytest -m parity -ra

fuzz: setup  ## damaged files for every reader of foreign files: PLOP_FUZZ=N of them each, 10,000 by default
	PLOP_FUZZ=$${PLOP_FUZZ:-10000} OMP_NUM_THREADS=1 $(BIN)/pytest tests/security/test_fuzz.py --numprocesses auto --durations=0

test-slow: setup  ## proofs that take minutes
	$(BIN)/pytest -m slow

test-order: setup  ## the tests in three random orders, one process each, as under nohup: the better part of an hour
	for seed in 1 2 3; do OMP_NUM_THREADS=1 nohup $(BIN)/pytest -m "not slow" -p randomly --randomly-seed=$$seed || exit 1; done

torture: setup  ## runs killed at 20 random moments each, resumed and compared: up to 15 minutes
	$(BIN)/python tests/torture.py --kills 20 --methods ft ewc plop --processes 1 2

crashes: setup  ## a run's disk after every file operation, and after power cuts, gone on from: about ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/crashes.py

chaos: setup  ## runs that meet random faults of all kinds, gone on from and compared: MINUTES=N, 30 by default
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos.py --minutes $${MINUTES:-30}

bench: setup  ## speed and memory, measured side by side: about eleven minutes
	$(BIN)/python -m benchmarks all

docs: setup  ## write docs/commands.md and docs/settings.md from the program
	$(BIN)/python -m plopcli.cli.reference docs

photos: setup  ## PLOP and FT on genuine photographs: make photos PHOTOS=DIR WEIGHTS=FILE SEED=N
	$(BIN)/plop run-scenario --preset photos-small --dataset voc --set data.path=$(PHOTOS) --task docs/tasks/animals.toml --method plop --weights $(WEIGHTS) --seed $(SEED) --run runs/photos-plop-s$(SEED) --resume
	$(BIN)/plop run-scenario --preset photos-small --dataset voc --set data.path=$(PHOTOS) --task docs/tasks/animals.toml --method ft --weights $(WEIGHTS) --seed $(SEED) --run runs/photos-ft-s$(SEED) --init-from runs/photos-plop-s$(SEED) --resume
	$(BIN)/plop report runs/photos-plop-s$(SEED) runs/photos-ft-s$(SEED)

iabn: setup  ## the compiled inplace-abn package, optional: needs g++ and, with a torch for CUDA, nvcc; minutes
	$(BIN)/python -m tools.build_inplace_abn

lock: setup  ## renew requirements.lock within the ranges of pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 pyproject.toml --group dev -o requirements.lock

clean:  ## remove the environment and caches; runs and data stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
