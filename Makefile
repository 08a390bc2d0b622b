# make demo: set up and run the main job · make test: set up and pass the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: docs demo test test-slow test-faults test-gpu lint bench bench-gpu clean

demo: $(STAMP)
	$(BIN)/finetune sweep sweeps/quickstart.yaml --output_dir runs/quickstart
	$(BIN)/finetune report runs/quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not faults"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-faults: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "fault or faults"

# What means something on a GPU, with the Python that has torch there: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_TESTS := tests/gpu tests/training/test_device.py tests/training/test_graphs.py tests/training/test_head_stack.py \
	tests/training/test_idle.py tests/training/test_randomness_streams.py tests/prefix tests/commands/test_probe.py
# Side by side where pytest-xdist is there: most of a test's time is the host's
test-gpu:
	PYTHONPATH=$(CURDIR):$$PYTHONPATH $(GPU_PYTHON) -m pytest -rs $(GPU_TESTS) \
	  $$($(GPU_PYTHON) -c "import os, xdist; print('--dist worksteal -n', max(1, min(8, os.cpu_count() // 2)))" 2>/dev/null)

bench-gpu:
	$(GPU_PYTHON) benchmarks/gpu.py --out runs/gpu.json

bench: $(STAMP)
	$(BIN)/python benchmarks/speed.py --out runs/bench.json

# The pages of docs/ in build/site, as a browser reads them; a broken link is an error
docs: $(STAMP)
	$(BIN)/python -m mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff check .

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[demo,test]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # as pip would, but on every core
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info
