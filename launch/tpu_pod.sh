#!/usr/bin/env bash
# Runs a job on every worker of a Cloud TPU slice:
#   launch/tpu_pod.sh NAME ZONE --config=configs/merge.py --config.engine=mesh --config.output=/shared/merged ...
# Each worker needs this repository at $REMOTE_DIR (default: clinmerge_jax in the home folder), and all of them one file
# system for the models and config.output. Process 0 shows log and progress; the first error ends all.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "error: give NAME ZONE and the job's arguments, for instance --config=configs/merge.py" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
  --command "cd ${REMOTE_DIR:-clinmerge_jax} && EXTRAS=tpu launch/run.sh --distributed=auto $(printf '%q ' "$@")"
