#!/usr/bin/env bash
# Checks and measures on one NVIDIA GPU in at most 8 minutes, most valuable part first:
#   launch/gpu_check.sh [--model=FOLDER_OF_A_SMALL_LLAMA] [--wheels=FOLDER] [--only=PART,...] [--budget=SECONDS]
#                       [--markdown=FILE]
#   launch/gpu_check.sh --rehearse      # small shapes on the CPU, in some minutes: the code, not the figures
#
# For a machine with its own Python 3.12, JAX for CUDA, Flax, Optax, torch and transformers, and no network. Nothing is
# installed over what it has: packages that it lacks go into runs/gpu_check/packages, from wheels that are carried there.
# Fetch them on a machine with network (5 MB), from the root of this repository:
#   python3 -m pip download --no-deps --only-binary=:all: --implementation cp --python-version 3.12 \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
#     --constraint launch/constraints-py312.txt --dest runs/gpu_check/wheels \
#     grain array-record portpicker absl-py etils cloudpickle
# --wheels names another folder. Only training needs them (grain). PEFT, if it is there, is the peer of LoRA.
#
# Every part is a process of its own with a time limit. Each figure is in $OUT/gpu_check.json (runs/gpu_check without
# OUT) as soon as it is there, the table in gpu_check.md, what parts print in NAME.log. Exit status: 1 if a part failed
# or ran out of time, 2 if the check cannot begin. PYTHON names another Python than .venv's or python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
fi
exec env PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "$python" -m clinmerge_jax.benchmark.gpu_check "$@"
