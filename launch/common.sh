# Sourced by run.sh and test.sh: the repository's virtual environment, made once and kept up to date.
# Both run from the repository's root, so relative paths are taken from there.

root=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PYTHONUNBUFFERED=1

# prepare_environment NAME INSTALL_COMMAND...: installs unless it was done for these very pins.
prepare_environment() {
  local name=$1
  shift
  local python=${PYTHON:-python3}
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    command -v "$python" >/dev/null || {
      echo "error: $python: does not exist; install Python 3.11 or newer, or set PYTHON to one" >&2
      exit 2
    }
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "error: $python: is older than Python 3.11; set PYTHON to a newer one" >&2
      exit 2
    }
    echo "making the virtual environment .venv" >&2
    "$python" -m venv --clear .venv || {
      echo "error: $python: cannot create a virtual environment; install its venv module (python3-venv on Debian)" >&2
      exit 2
    }
  fi
  local stamp
  stamp=.venv/installed-$name-${EXTRAS:-none}-$(cat pyproject.toml launch/constraints-*.txt | sha256sum | cut -c1-16)
  if [ ! -e "$stamp" ]; then
    echo "installing ($name)" >&2
    "$@"
    touch "$stamp"
  fi
}

# The pins: those of Python 3.11, or those of every newer one.
constraints() {
  if .venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
    echo launch/constraints-py311.txt
  else
    echo launch/constraints-py312.txt
  fi
}

# EXTRAS=tpu or EXTRAS=gpu in the environment adds what JAX needs for that accelerator.
install_package() {
  .venv/bin/python -m pip install --quiet --editable ".${EXTRAS:+[$EXTRAS]}" -c "$(constraints)"
}

# torch, the reference of the tests, first and alone. Where the package index has no CPU build for the platform, its
# default build brings CUDA libraries of some gigabytes; a torch that is there already and fits the pin is kept.
install_tests() {
  .venv/bin/python -m pip install --quiet torch -c "$(constraints)" &&
    .venv/bin/python -m pip install --quiet --editable ".[test${EXTRAS:+,$EXTRAS}]" -c "$(constraints)"
}
