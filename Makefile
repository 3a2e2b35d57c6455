# The two commands a newcomer needs: `make bench` and `make test`.
# Each makes the environment it needs first; `make clean` removes everything they made.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# One thread a process: the processes are what runs in parallel (see docs/architecture.md).
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: bench test test-slow lint setup clean speed scale memory sources guidance parallel few_step orders verdicts learned universal \
        maps images mutation coverage fuzz docs tutorials package

bench: $(READY)
	@echo "==> diffode bench quick: error against NFE on exact targets"
	$(BIN)/diffode bench quick

test: $(READY)
	@echo "==> running the tests"
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: $(READY)
	@echo "==> running the tests that take long"
	$(BIN)/python -m pytest -n auto -m slow

lint: $(READY)
	@echo "==> format, lint and types"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "==> making the environment in $(VENV) (a few minutes the first time: PyTorch is large)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "diffode needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "==> installing diffode and its tools at the versions of constraints.txt"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	@# azula is judged in the tests; its dependencies (downloaders, torchvision) are not needed for that.
	$(BIN)/python -m pip install --quiet --no-deps 'azula==0.11.1'
	@touch $(READY)
	@echo "==> ready: $(BIN)/diffode --help"

orders: $(READY)
	@echo "==> orders of convergence on three targets and two grids"
	$(BIN)/python benchmarks/orders.py

learned: $(READY)  # hours: it trains a table for every target and number of evaluations
	@echo "==> what learning gains, on held-out starts and targets"
	$(BIN)/python benchmarks/learned.py --conditioned
	$(BIN)/python benchmarks/amed.py

universal: $(READY)  # about three hours: trains the universal tables and codebooks again
	$(BIN)/python tools/train_universal.py
	$(BIN)/python tools/train_universal_members.py

speed: $(READY)  # leave the machine alone while it runs
	@echo "==> speed against the alternatives, as ratios within one run"
	env -u OMP_NUM_THREADS -u MKL_NUM_THREADS $(BIN)/python benchmarks/speed.py
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python benchmarks/memory.py

memory: $(READY)  # a few minutes
	@echo "==> memories of signals: measures, holds and signals, with their errors in parts"
	$(BIN)/python tools/make_memory.py

few_step: $(READY)  # half a minute
	@echo "==> what few-step generators learn: docs/few_step.md and its pictures"
	$(BIN)/python tools/make_few_step.py

maps: $(READY)  # about 40 minutes of one core: trains the flow maps that ship again
	rm -f diffode/solvers/trained/maps/*.safetensors
	$(BIN)/python tools/train_maps.py

sources: $(READY)  # a few minutes
	@echo "==> fields whose noise is no normal one: Poisson flows, from mixture to mixture"
	$(BIN)/python tools/make_sources.py

verdicts: $(READY)  # twenty minutes of one core; PEERS=FOLDER names where checkouts of other libraries lie
	@echo "==> the samplers of public libraries, judged: docs/verdicts"
	$(BIN)/python tools/make_verdicts.py $(if $(PEERS),--peers $(PEERS))

guidance: $(READY)  # a few minutes on two cores
	@echo "==> samplers and laws under guidance, on exact fields"
	$(BIN)/python tools/make_guidance.py

parallel: $(READY)  # a minute
	@echo "==> runs parallel in time: calls that wait against calls that are made"
	$(BIN)/python tools/make_parallel.py

images: $(READY)  # half an hour on two cores
	@echo "==> solvers on a network for real pictures: docs/images.md, laws of 10,000 samples"
	$(BIN)/python tools/make_images.py --samples 10000

scale: $(READY)  # a few minutes
	@echo "==> how time grows with points, modes, dimensions, steps and cells"
	$(BIN)/python benchmarks/scale.py

mutation: $(READY)  # an hour: changes the numerical core piece by piece and runs the tests that run the line
	$(BIN)/python -m pip install --quiet cosmic-ray pytest-cov
	$(BIN)/python tools/mutate.py --sample 100

fuzz: $(READY)  # about half an hour on two cores
	@echo "==> random runs, damaged files and odd command lines: answers or refusals, nothing else"
	$(BIN)/python tools/fuzz.py --seed 0 --runs 12000 --files 3000 --commands 300

coverage: $(READY)
	$(BIN)/python -m pip install --quiet pytest-cov
	$(BIN)/python -m pytest -n auto --cov --cov-report=term-missing:skip-covered

docs: $(VENV)/.docs
	@echo "==> the site: tutorials executed, warnings are errors; then the code of the pages"
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site
	$(BIN)/python -m pytest -n auto tests/test_docs.py -k "code_blocks or links or suites"
	@echo "==> open build/site/index.html"

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

tutorials: $(READY)
	@echo "==> the tutorials as programs"
	$(BIN)/python tools/run_tutorials.py

package: $(READY)  # two minutes, most of them for PyTorch
	@echo "==> the archive and the wheel, built, installed in a fresh environment and tried there"
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python tools/try_package.py

clean:
	rm -rf $(VENV) diffode-report build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* mutation.json fuzz.jsonl
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
