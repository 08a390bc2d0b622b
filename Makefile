# make demo: set up and run the main job · make test: set up and pass the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-faults lint bench clean

demo: $(STAMP)
	$(BIN)/finetune sweep sweeps/quickstart.yaml --output_dir runs/quickstart
	$(BIN)/finetune report runs/quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not faults"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-faults: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "fault or faults"

bench: $(STAMP)
	$(BIN)/python benchmarks/speed.py --out runs/bench.json

lint: $(STAMP)
	$(BIN)/ruff check .

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,test]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info
