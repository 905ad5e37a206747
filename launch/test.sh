#!/usr/bin/env bash
# Runs the tests: launch/test.sh [--all] [pytest arguments]. --all adds what is too long for every run, and installs
# libtpu, so that TPU programs are compiled too. The files are shared out among up to four processes, one a core.
set -euo pipefail
source "$(dirname "$0")/common.sh"
select=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
  select=()
  export EXTRAS=${EXTRAS:-tpu}
  shift
fi
prepare_environment test install_tests
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} HF_HUB_OFFLINE=1
exec .venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "${select[@]}" "$@"
