# make demo       set up, then run the four steps on the sample in data1/
# make test       set up, then run the tests
# make test-slow  run the tests that take long: all variants at all published sizes, the house without its extras
# make test-all   run both
# make test-root  run the tests that mount file systems or make networks (Linux, as root)
# make lint       check the code's style
# make bench      time the network beside timm's, epochs beside bare steps, losses beside timm's; measure memory
# make chaos      kill training and makedata.py at 140 random moments; 15 minutes
# make fuzz       read 20,000 damaged files of each kind
# make setup      install what the four steps need, into .venv/
# make clean      remove .venv/ and caches
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# As many processes as there are cores, one thread each. The tests of a file stay together: they share set-ups.
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

# Settings of the demo: eight minutes from scratch; what is in data1/ was drawn at any angle.
DEMO = --pretrained false --time-budget 8 --view above

.PHONY: demo test test-slow test-all test-root lint bench chaos fuzz setup clean

demo: $(VENV)/.ready
	$(BIN)/python mean_std.py
	$(BIN)/python makedata.py
	$(BIN)/python train.py $(DEMO)
	$(BIN)/python test.py

test: $(VENV)/.ready-dev
	$(PYTEST)

test-slow: $(VENV)/.ready-dev
	$(PYTEST) -m 'slow and not root'

test-all: $(VENV)/.ready-dev
	$(PYTEST) -m 'not root'

test-root: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m root

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
	FUZZ=20000 $(BIN)/python -m pytest -q -k fuzz

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
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
