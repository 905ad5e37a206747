"""Checks that two commits write the same bytes: ten merges, one fine-tuning, one generation, one evaluation.

  .venv/bin/python launch/same_bytes.py OLD_COMMIT NEW_COMMIT

Run it when a change must not change behaviour. Both commits are checked out into a temporary folder and run on the
miniature with the Python that runs this script. It compares all files except those that hold versions, places or
times, prints one line for each run, and ends with status 1 if anything differs.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

_METHODS = (
    "linear", "slerp", "nuslerp", "karcher", "ties", "dare_linear", "della", "breadcrumbs", "sce", "arcee_fusion",
)  # fmt: skip
_NEEDS_BASE = {"ties", "dare_linear", "della", "breadcrumbs", "sce"}
_RUNS = {
    **{
        f"merge {method}": [
            f"--config=configs/merge.py:{method}", "--config.evaluate=",
            *(["--config.base=miniature:base"] if method in _NEEDS_BASE else []),
        ]
        for method in _METHODS
    },
    "sft": [
        "--config=configs/sft.py:lora", "--config.task=miniature_bhc", "--config.shots=32", "--config.steps=6",
        "--config.batch_size=8",
    ],
    "generate": ["--config=configs/generate.py", "--config.limit=16"],
    "evaluate": ["--config=configs/evaluate.py", "--config.limit=12", "--config.model=instruct=miniature:instruct"],
}  # fmt: skip
_LEFT_OUT = ("provenance.json", "README.md", ".salt", "log", "log/*", "*.tfevents*", ".lock")  # versions, places, times


def _digests(output: pathlib.Path) -> dict[str, str]:
    found = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output)
        if not path.is_file() or any(name.match(pattern) or name.parts[0] == pattern for pattern in _LEFT_OUT):
            continue
        content = path.read_bytes()
        if name.name in ("results.jsonl", "answers.jsonl"):
            content = b"\n".join(_comparable(line) for line in content.splitlines())
        found[str(name)] = hashlib.sha256(content).hexdigest()
    return found


def _comparable(line: bytes) -> bytes:
    """A line without its provenance, times, and ids that a random salt makes."""
    row = json.loads(line)
    for key in ("provenance", "about", "key"):
        row.pop(key, None)
    for key in ("items", "clusters"):
        row[key] = len(row.get(key) or ())
    return json.dumps(row, sort_keys=True).encode()


def _run(commit: str, folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """Runs one commit. All commits run in the same places, because some outputs name the models' folders."""
    source, outputs = folder / "source", folder / "outputs"
    root = pathlib.Path(__file__).parents[1]
    if not source.exists():
        subprocess.run(["git", "clone", "--quiet", "--shared", str(root), str(source)], check=True)
    subprocess.run(["git", "-C", str(source), "checkout", "--quiet", "--detach", commit], check=True)
    shutil.rmtree(outputs, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(source), "JAX_PLATFORMS": "cpu"}
    found = {}
    for name, options in _RUNS.items():
        output = outputs / name.replace(" ", "-")
        command = [sys.executable, "-m", "clinmerge_jax.main", *options, f"--config.output={output}"]
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: {commit}, {name}: exit status {done.returncode}\n{done.stderr[-2000:]}")
        found[name] = _digests(output)
    return found


def main() -> int:
    """Runs both commits and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        old, new = _run(options.old, folder), _run(options.new, folder)
    different = False
    for name in _RUNS:
        names = {file for file in {*old[name], *new[name]} if old[name].get(file) != new[name].get(file)}
        different |= bool(names)
        print(f"{name}: {len(old[name])} files, {'differ: ' + ', '.join(sorted(names)) if names else 'the same bytes'}")
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
