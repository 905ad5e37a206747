#!/usr/bin/env bash
# Runs the tests: launch/test.sh [--all] [pytest arguments]. --all adds what is too long for every run, and installs
# libtpu, so that TPU programs are compiled too. The files are shared out among up to four processes, one a core; tests
# of several processes that watch one another's time come after them, alone.
set -euo pipefail
source "$(dirname "$0")/common.sh"
select="not slow"
if [ "${1:-}" = "--all" ]; then
  select="slow or not slow"
  export EXTRAS=${EXTRAS:-tpu}
  shift
fi
prepare_environment test install_tests
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} HF_HUB_OFFLINE=1
nothing=5 # pytest's status where no test was selected
status=$nothing

phase() {
  local now=0
  .venv/bin/python -m pytest "$@" || now=$?
  if [ "$now" != $nothing ] && { [ "$status" = $nothing ] || [ "$status" = 0 ]; }; then
    status=$now
  fi
}

phase --numprocesses=auto --maxprocesses=4 --dist=loadfile -m "($select) and not alone" "$@"
if [ $# = 0 ]; then # without arguments, only the files that have such tests are collected
  mapfile -t alone < <(grep -rl 'mark\.alone' tests --include='*.py')
  set -- "${alone[@]}"
fi
phase -m "($select) and alone" "$@"
exit "$status"
