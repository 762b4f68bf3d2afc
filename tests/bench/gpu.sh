#!/bin/sh
# Every check that needs a GPU, in one command and under ten minutes; prints a table (Markdown) and keeps it in a file.
#   sh tests/bench/gpu.sh            on a card of 16 GB or more (a larger one is held to 16 GiB); 16 GB of disk under $TMPDIR
#   sh tests/bench/gpu.sh --smoke    the same code on a CPU with tiny shapes
#   --out FILE                       where the table goes (default .hybridsum/gpu_bench.md)
# Needs torch (a CUDA build), transformers, peft, accelerate, safetensors, pydantic, pyyaml, psutil, nvidia-ml-py as in
# requirements.txt. These wheels add rows; without one its rows are left out, and named:
#   bitsandbytes==0.50.2             the base in NF4
#   trl==1.16.0 datasets==5.2.0      TRL's SFTTrainer beside ours
#   liger-kernel==0.8.5              model.liger
# PYTHON chooses the interpreter; by default the project's own environment.
set -e
cd "$(dirname "$0")/../.."
if [ -z "$PYTHON" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
exec "$PYTHON" -m tests.bench.gpu "$@"
