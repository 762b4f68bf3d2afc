# make demo: everything set up, two runs queued, the dashboard open.   make test: set up, and the whole suite.
PYTHON ?= python3
VENV ?= .venv
# A machine without an NVIDIA GPU saves 3 GB with TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==.*/&/p' requirements.txt)

.PHONY: setup demo test check lint bench bench-quick bench-peers bench-forgetting soak planted kill-evaluation clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "hybridsum needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Give another: make setup PYTHON=python3.12"; exit 2; }
	@if $(PYTHON) -c 'import sys, torch; sys.exit(not torch.version.cuda)' 2>/dev/null; then \
		echo "keeping the CUDA build of torch that $(PYTHON) has"; \
		$(PYTHON) -m venv --system-site-packages $(VENV) && \
		grep -v '^torch==' requirements.txt > $(VENV)/requirements.txt; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/pip install -q --disable-pip-version-check $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) && \
		cp requirements.txt $(VENV)/requirements.txt; \
	fi
	@$(BIN)/pip install -q --disable-pip-version-check -r $(VENV)/requirements.txt -r requirements-dev.txt
	@touch $@

demo: setup
	$(BIN)/python hybridsum.py demo

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "not engine and not processes" 
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "engine or processes"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: lint test

# An hour and a half on two idle cores, nearly all of it bench-peers.
bench: bench-quick bench-peers

bench-quick: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.benchmarks

# Beside Hugging Face Trainer and TRL; installs TRL into the same environment.
bench-peers: setup
	@$(BIN)/pip install -q --disable-pip-version-check -r requirements-bench.txt
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.peers --write
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.fisher_cost
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m tests.step_cost

# Hours on two cores; what is done is not done again. A second one in another terminal takes half of the work.
bench-forgetting: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.forgetting

soak: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.soak

# What the gate says of a trained adapter, of its copy, and of three times its update: CHECKPOINT=checkpoints/RUN/PHASE/final
planted: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.planted $(CHECKPOINT)

# 500 transcripts of one's own (records, JSONL) judged by a process that is killed five times: TRANSCRIPTS="FILE ..."
kill-evaluation: setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.killed_evaluation $(TRANSCRIPTS)

clean:
	rm -rf $(VENV)
