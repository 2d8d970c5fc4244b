# The one entry. Each verb is a line that anyone may type by hand.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# the Python of Debian 13 (trixie), if there is one that runs
PYTHON_313 ?= $(shell for it in python3.13 $(HOME)/.pyenv/versions/3.13*/bin/python3.13; do $$it -c "import venv" 2> /dev/null && echo $$it && break; done)
ARGS ?=
SEEDS ?= 200
FIRST_SEED ?= 1
ifdef SEED
FIRST_SEED := $(SEED)
SEEDS := 1
endif

SHELL := /bin/bash
.PHONY: deb test-arm test-vm bench-accuracy bench-asynchrony bench-attacks bench-aggregate bench-codec bench-demo bench-faults bench-finetune bench-footprint bench-qas bench-sim kernels test-aarch64 help demo test check format sim mutants model warm nightly soak test-py313 clean
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

demo: $(VENV)/warm ## a fleet of ten real agents learns over MQTT; ARGS="--devices 20 --rounds 40 --seed 7"
	@$(BIN)/firmware-sim demo $(ARGS)

test: $(VENV)/dev $(VENV)/warm ## every test
	$(BIN)/pytest -n 2 -m "not real" tests $(ARGS)
	$(BIN)/pytest -n 2 --dist loadfile -m real tests $(ARGS)  # they wait more than they work

test-py313: ## the same tests on Python 3.13, in .venv-3.13: LiteRT and numpy 2, as on Debian 13
	@if [ -z "$(PYTHON_313)" ]; then echo "skipped: no Python 3.13 here (PYTHON_313=/path/to/it says where one is)"; \
	else $(MAKE) test VENV=.venv-3.13 PYTHON=$(PYTHON_313); fi

soak: $(VENV)/dev $(VENV)/warm ## a small real fleet for twenty minutes: does memory, a file count or the flash grow? ARGS="--minutes 60"
	@$(BIN)/python -m tests.real.soak $(ARGS)

check: $(VENV)/dev ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev ## mend what can be mended by machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sim: $(VENV)/sim ## a simulated storm over the fleet; SEEDS=200 FIRST_SEED=1, or SEED=7
	@$(BIN)/firmware-sim sim --seeds $(SEEDS) --first-seed $(FIRST_SEED) $(ARGS)

mutants: $(VENV)/dev ## plant known bugs, one by one; each must be found
	$(BIN)/python -m tests.mutants $(ARGS)

model: ## build the shipped models anew, in an environment of their own (TensorFlow, about 1.5 GB)
	$(PYTHON) firmware_sim/models/build.py $(ARGS)

kernels: $(VENV)/dev ## compile the kernels ahead of time for every target, as a release does (needs a linker)
	$(BIN)/python deploy/release/kernels.py $(ARGS)

test-aarch64: $(VENV)/dev ## the same bits on every target? aarch64 runs under emulation
	@$(BIN)/python -m tests.targets.aarch64

deb: kernels ## the Debian package of the agent for 64-bit ARM, in dist/; ARGS="--python 3.13" for trixie
	@$(BIN)/python deploy/raspi/package.py $(ARGS)

test-arm: $(VENV)/dev ## install that package on an emulated ARM machine, and let it take part in two rounds (root; 5 minutes)
	@$(BIN)/python -m tests.targets.arm

test-vm: $(VENV)/dev ## a whole emulated ARM machine: the newcomer's road, power cuts, a Raspberry Pi 3 B (root; about an hour); ARGS="--cuts 5 --seed 7"
	@$(BIN)/python -m tests.targets.vm $(ARGS)

warm: $(VENV)/warm ## compile the kernels now rather than at first use

bench-demo: $(VENV)/warm ## the demo at five seeds, medians; ARGS=--json for one object
	@$(BIN)/python benchmarks/demo.py $(ARGS)

bench-finetune: $(VENV)/warm ## one training step against PyTorch, ONNX Runtime, TensorFlow, LiteRT; needs FLEET_MODELS; ARGS=--json
	@$(BIN)/python -m benchmarks.finetune $(ARGS)

bench-qas: $(VENV)/warm ## int8 training against float32, one device and a fleet; needs FLEET_MODELS and FLEET_DATA; ARGS=--json
	@$(BIN)/python -m benchmarks.qas $(ARGS)

bench-accuracy: $(VENV)/warm ## what a fleet learns that sends 1 % or 0.1 %, and for how many bytes; needs FLEET_MODELS and FLEET_DATA; ARGS=--json
	@$(BIN)/python -m benchmarks.accuracy $(ARGS)

bench-aggregate: $(VENV)/warm ## what each aggregation rule costs, beside Flower and NumPy, and what an update costs that comes in; ARGS=--json
	@$(BIN)/python -m benchmarks.aggregate $(ARGS)

bench-attacks: $(VENV)/warm ## what lying devices cost a fleet, by rule and attack; needs FLEET_DATA for MNIST; ARGS=--json, --seeds 3 or --full
	@$(BIN)/python -m benchmarks.attacks $(ARGS)

bench-asynchrony: $(VENV)/warm ## how long fast and slow devices take to learn, buffered and synchronous; needs FLEET_MODELS and FLEET_DATA; ARGS=--json
	@$(BIN)/python -m benchmarks.asynchrony $(ARGS)

bench-codec: $(VENV)/warm ## what an update costs, beside its peers; needs FLEET_MODELS and FLEET_DATA; ARGS=--json
	@$(BIN)/python -m benchmarks.codec $(ARGS)

bench-faults: $(VENV)/warm ## power cut, outage, SIGKILL: what of finished work reaches the model, beside Flower; ARGS=--json or --ours-only
	@$(BIN)/python -m benchmarks.faults $(ARGS)

bench-footprint: $(VENV)/warm ## what the agent costs a device: disk, memory, idle bytes, seconds a round, wear of the card (root); ARGS=--json or --peers
	@$(BIN)/python -m benchmarks.footprint $(ARGS)

bench-sim: $(VENV)/warm ## what a simulated device costs, beside Flower's simulator, and 10,000 real connections; ARGS=--json
	@$(BIN)/python -m benchmarks.sim $(ARGS)

nightly: $(VENV)/dev $(VENV)/warm ## what takes longer than a test may
	$(BIN)/firmware-sim sim --seeds 100000 --first-seed 100000
	$(BIN)/firmware-sim sim --seeds 500 --scenario byzantine
	$(BIN)/firmware-sim sim --seeds 100 --scenario solar-week
	$(BIN)/firmware-sim sim --seeds 100 --scenario metered-link
	$(BIN)/python -m tests.mutants
	$(BIN)/python -m tests.fuzz_models 100000
	$(BIN)/python -m tests.fuzz_codec 1000000
	$(BIN)/python -m tests.targets.aarch64
	$(BIN)/python -m tests.targets.arm
	$(BIN)/python -m tests.targets.vm
	$(BIN)/python -m tests.real.gale --seconds 300
	$(BIN)/python -m tests.real.soak --minutes 24 --out .cache/soak.png
	$(MAKE) test-py313

clean: ## forget the environment and every cache in this folder
	rm -rf .venv .venv-3.13 .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No python3 found. Install Python 3.11 or newer: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make $(VENV) with $(PYTHON). On Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install -qq --disable-pip-version-check --upgrade pip

$(VENV)/sim: pyproject.toml | $(VENV)/bin/python
	@echo "Installing (once, about a minute) ..." >&2
	@$(BIN)/pip install -qq --disable-pip-version-check -e '.[sim]'
	@touch $@

$(VENV)/dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the tools for tests and checks (once) ..." >&2
	@$(BIN)/pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/sim

$(VENV)/warm: $(VENV)/sim $(wildcard engine/kernels/*.py)
	@$(BIN)/edge-agent warm >&2
	@touch $@
