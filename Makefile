# make demo: set up and run the four steps on the sample in data1/
# make test: set up and run the tests
# make test-all: the slow tests too (all five variants at all published sizes)
# make chaos: kill training and makedata.py at 140 random moments
# make fuzz: 100,000 damaged pictures, checkpoints and other files
# make mutants: change the training code in 3,300 places, one at a time, and see which changes no test notices; hours
# make bench: time the network beside timm's, whole epochs beside bare steps; memory of steps, losses beside timm's
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

# Settings of the demo: eight minutes from scratch; what is in data1/ was drawn at any angle.
DEMO = --pretrained false --time-budget 8 --view above

.PHONY: demo test test-all lint bench chaos fuzz mutants setup clean

demo: $(VENV)/.ready
	$(BIN)/python mean_std.py
	$(BIN)/python makedata.py
	$(BIN)/python train.py $(DEMO)
	$(BIN)/python test.py

test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

test-all: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m 'slow or not slow'

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .

bench: $(VENV)/.ready
	$(BIN)/python tests/bench/model.py
	$(BIN)/python tests/bench/model.py --model volo_d3
	$(BIN)/python tests/bench/data.py
	$(BIN)/python tests/bench/loss.py
	$(BIN)/python tests/bench/memory.py

chaos: $(VENV)/.ready-dev
	$(BIN)/python tests/robustness/chaos.py

fuzz: $(VENV)/.ready-dev
	FUZZ=20000 $(BIN)/python -m pytest -q tests/robustness/test_fuzz.py

# MUTANTS='common.training.clock*' takes those of one file; what has been tried is not tried again until it changes
mutants: $(VENV)/.ready-dev
	$(BIN)/python -m pip install -q mutmut
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install -q 'pytest>=8' pytest-xdist 'ruff>=0.6' hypothesis pillow-heif onnx onnxscript onnxruntime litdata playwright tensorboard
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache mutants
