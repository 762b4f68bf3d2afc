#!/bin/sh
# Every check that needs a GPU, in one command and under ten minutes; prints a table (Markdown).
#   sh tests/bench/gpu.sh            on a card of 16 GB or more (a larger one is held to 16 GiB); 16 GB of disk under $TMPDIR
#   sh tests/bench/gpu.sh --smoke    the same code on a CPU with tiny shapes
# Needs torch (a CUDA build), transformers, peft, accelerate, safetensors, pydantic, pyyaml, psutil, nvidia-ml-py as in
# requirements.txt, and for the NF4 rows the wheel bitsandbytes==0.50.2. Without that wheel they are left out, and named.
# PYTHON chooses the interpreter; by default the project's own environment.
set -e
cd "$(dirname "$0")/../.."
if [ -z "$PYTHON" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
exec "$PYTHON" -m tests.bench.gpu "$@"
