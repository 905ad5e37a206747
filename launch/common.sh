# Sourced by run.sh and test.sh: the repository's virtual environment, made once and kept up to date.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export PYTHONUNBUFFERED=1

# prepare_environment NAME INSTALL_COMMAND...: installs unless it was done for these very pins.
prepare_environment() {
  local name=$1
  shift
  local python=${PYTHON:-python3}
  if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "error: $python is older than Python 3.11; set PYTHON to a newer one" >&2
      exit 2
    }
    echo "making the virtual environment .venv" >&2
    "$python" -m venv .venv
  fi
  local stamp
  stamp=.venv/installed-$name-$(cat pyproject.toml launch/constraints-*.txt | sha256sum | cut -c1-16)
  if [ ! -e "$stamp" ]; then
    echo "installing ($name)" >&2
    "$@"
    touch "$stamp"
  fi
}

# The pins of the Python in use; releases that were never tried install within pyproject's ranges.
constraints() {
  local file
  file=launch/constraints-py$(.venv/bin/python -c 'import sys; print("%d%d" % sys.version_info[:2])').txt
  if [ -e "$file" ]; then echo "-c $file"; else echo "note: no $file, versions are not pinned" >&2; fi
}

install_package() { .venv/bin/python -m pip install --quiet --editable . $(constraints); }

# torch first and alone: the release pinned here has a CPU build.
install_tests() {
  .venv/bin/python -m pip install --quiet $(constraints) torch &&
    .venv/bin/python -m pip install --quiet --editable '.[test]' $(constraints)
}
