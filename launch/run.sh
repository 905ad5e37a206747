#!/usr/bin/env bash
# Runs a job, by default the miniature merge: launch/run.sh [--config=configs/JOB.py ...]
set -euo pipefail
source "$(dirname "$0")/common.sh"
prepare_environment run install_package
if [[ " $* " != *" --config="* && " $* " != *" --config "* ]]; then
  set -- --config=configs/merge.py "$@"
fi
exec .venv/bin/python -m clinmerge_jax.main "$@"
