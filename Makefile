# `make demo` and `make test` do all of their own set-up, in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that tests run in. Those of one file share one, and what it has set up; the first files take longest.
WORKERS ?= 2
READY := $(VENV)/.ready

# CUDA builds of PyTorch that see a simulated GPU: what `make test` runs, and the oldest that is supported.
CUDA_TORCHES ?= 2.11.0 2.14.1
ALL_CUDA_TORCHES ?= 2.6.0 $(CUDA_TORCHES)
CUDA_TORCH ?= $(firstword $(CUDA_TORCHES))

.PHONY: help demo demo-gpu slurm-demo test test-cuda test-cuda-all coverage mutation lint bench clean

help:
	@echo "make demo   lay out a small run in demo-run/ and probe it: no GPU, no Slurm, no download"
	@echo "make demo-gpu  the same in the shape of Llama 3.2 1B, on a simulated H100: no GPU"
	@echo "make slurm-demo  the same on a one-node Slurm cluster (root): probe, and training that waits for it"
	@echo "make test   run every test, those of the CUDA path on a simulated GPU"
	@echo "make test-cuda CUDA_TORCH=2.11.0  those alone, with one build of PyTorch"
	@echo "make test-cuda-all  the same with the oldest that is supported too, as a table"
	@echo "make coverage  the same, and which lines and branches of autobatch/ no test reaches"
	@echo "make mutation  the search and the edits with a mistake in them, one at a time: which do the tests miss?"
	@echo "make lint   ruff and mypy --strict"
	@echo "make bench  autobatch beside accelerate, Lightning and halving by hand (takes a while; installs them)"
	@echo "make clean  remove .venv, demo-run/ and caches"

# torch first and by itself: as another package's dependency, pip would fetch a build with CUDA packages.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[dev]'
	touch $@

# torch's dependencies but NVIDIA's packages: several GB, and a simulated GPU needs none of them.
$(VENV)-cuda-%/.ready: $(READY)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps "torch==$*"
	$(BIN)/python -m pip freeze --exclude torch --exclude-editable > $(@D)/requirements.txt
	$(@D)/bin/python -c 'import importlib.metadata as m; print(*(r for r in m.requires("torch") if r.startswith("triton")))' \
		>> $(@D)/requirements.txt
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement $(@D)/requirements.txt
	$(@D)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: $(READY)
	rm -rf demo-run
	$(BIN)/autobatch demo demo-run

demo-gpu: $(VENV)-cuda-$(firstword $(CUDA_TORCHES))/.ready
	rm -rf demo-gpu-run
	$(<D)/bin/autobatch demo demo-gpu-run --gpu h100-80gb

slurm-demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" slurm/demo

test: $(READY) $(CUDA_TORCHES:%=$(VENV)-cuda-%/.ready)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	for torch in $(CUDA_TORCHES); do $(MAKE) --no-print-directory test-cuda CUDA_TORCH=$$torch || exit; done

test-cuda: $(VENV)-cuda-$(CUDA_TORCH)/.ready
	OMP_NUM_THREADS=1 $(<D)/bin/autobatch simulate --gpus 4 -- \
		python -m pytest tests/cuda -n $(WORKERS) --dist loadfile $(PYTEST_OPTIONS)

test-cuda-all: $(ALL_CUDA_TORCHES:%=$(VENV)-cuda-%/.ready)
	$(BIN)/python -m tests.benchmarks.simulated_torches $(^:%/.ready=%) \
		--markdown tests/benchmarks/results/simulated-torches.md

coverage: $(READY)
	rm -f .coverage .coverage.*
	-$(BIN)/python -m coverage run -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --fail-under 95

mutation: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[mutation]'
	$(BIN)/mutmut run --max-children $(WORKERS)
	$(BIN)/mutmut results

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m tests.benchmarks.peers --environment $(VENV)/peers

clean:
	rm -rf $(VENV) $(VENV)-cuda-* demo-run demo-gpu-run mutants .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
