#!/usr/bin/env bash
# Runs the tests: launch/test.sh [--all] [pytest arguments]. --all adds what is too long for every run.
set -euo pipefail
source "$(dirname "$0")/common.sh"
prepare_environment test install_tests
select=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
  select=()
  shift
fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} HF_HUB_OFFLINE=1
exec .venv/bin/python -m pytest "${select[@]}" "$@"
