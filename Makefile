# Everything runs in .venv, which is made on first use; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/mnist
# The list is whole, so nothing is to be resolved, and two can work it off; and what is never imported need not be compiled.
QUICKLY := --quiet --disable-pip-version-check --no-deps --no-compile

.PHONY: setup demo test tests style types test-slow bench bench-losses bench-search bench-speed bench-serve lint reproduce clean

setup: .venv/.ready

.venv/.ready: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("nearfar needs Python 3.11 or later, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the pinned environment into .venv ..."
	@sed 's/#.*//' requirements-dev.txt | xargs -P 2 -n 40 $(BIN)/python -m pip install $(QUICKLY) 2>.venv/install.log \
		|| { cat .venv/install.log >&2; exit 1; }
	@$(BIN)/python -m pip install $(QUICKLY) --no-build-isolation --editable . 2>>.venv/install.log \
		|| { cat .venv/install.log >&2; exit 1; }
	@touch $@

# The main job: fetch MNIST, train on its 60,000 images, index them, measure and draw on the 10,000 test images.
demo: setup
	@rm -rf $(RUN)
	$(BIN)/nearfar data fetch mnist
	$(BIN)/nearfar train mnist --recipe mnist-fast --out $(RUN)
	$(BIN)/nearfar report $(RUN)

lint: style types

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# One thread a process, so that parallel tests do not fight for the cores; a file stays with one process, which makes its runs once,
# and files come in the order of tests/conftest.py, slow ones first.
# The types are checked beside the tests, which do not always keep both cores busy.
test: style
	$(BIN)/nearfar data fetch mnist
	@$(MAKE) --no-print-directory --jobs 2 types tests

tests: setup
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/nearfar data fetch mnist
	$(BIN)/nearfar data fetch fashion-mnist
	$(BIN)/pytest -q -m slow

bench: bench-losses bench-search bench-speed bench-serve

# Time, memory and digits of the losses against the dense form and against pytorch-metric-learning; on an idle machine.
bench-losses: setup
	$(BIN)/python benchmarks/losses.py

# Exact and approximate search and the figures of retrieval against faiss, scikit-learn and pytorch-metric-learning; on an idle
# machine with 24 GiB (the peers' need, not ours) and 15 GiB on the disk for the gallery of ten million.
bench-search: setup
	$(BIN)/nearfar data fetch mnist
	$(BIN)/python benchmarks/search.py

# The recipes' goals with five seeds each, plain loops, training steps and convolutions beside ours, and accuracy over seconds;
# seven hours on two idle cores, five of them `fashion-best`. Finished trainings in runs/ are used again.
bench-speed: setup
	$(BIN)/nearfar data fetch mnist
	$(BIN)/nearfar data fetch fashion-mnist
	$(BIN)/python benchmarks/recipes.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/convolutions.py
	$(BIN)/python benchmarks/curves.py

# The service beside a plain FastAPI handler: requests a second, latency, memory under ten minutes of load; on an idle machine.
bench-serve: setup
	$(BIN)/nearfar data fetch mnist
	@test -e runs/mnist/config.json || $(BIN)/nearfar train mnist --recipe mnist-fast --out runs/mnist
	@test -e runs/mnist/model.onnx || $(BIN)/nearfar export runs/mnist --out runs/mnist/model.onnx
	$(BIN)/python benchmarks/serve.py --minutes 10

# The five reference systems with three seeds each, into docs/reference-systems.md. Hours on two cores, which should be idle;
# what is finished is used again, so it may be broken off and repeated.
reproduce: setup
	$(BIN)/nearfar data fetch mnist
	$(BIN)/nearfar data fetch fashion-mnist
	@mkdir -p runs/reproduce
	@test -e runs/reproduce/steps.json || $(BIN)/python benchmarks/speed.py --out runs/reproduce/steps.json
	$(BIN)/python benchmarks/reproduce.py --compare

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
