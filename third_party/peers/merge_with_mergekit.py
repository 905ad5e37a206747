"""Runs mergekit on a recipe and reports the time and memory that it took.

    PEER_PYTHON third_party/peers/merge_with_mergekit.py recipe.yml OUTPUT

PEER_PYTHON is the Python of an environment with requirements-mergekit.txt installed; clinmerge_jax
is not needed there. The merge runs on the CPU with the defaults of `mergekit-yaml`, but for the
lazy unpickler, which is on, and the tokenizer copy, model card and progress bars, which are off
because they are not part of the merge. Relative model paths in the recipe are resolved from the
current directory, and every model must be a local folder.

The last line of standard output is one JSON object:
  seconds         wall time from the start of this process to the end of the merge, imports included
                  (resolution: one kernel clock tick, usually 10 ms)
  peak_rss_bytes  largest resident set of this process so far (VmHWM)
  mergekit, torch versions

Linux only: both measurements come from /proc. Exit status 2, with one line on standard error, for
a recipe that cannot be read or an OUTPUT that is not empty.
"""

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path


def seconds_since_process_start() -> float:
    """Wall seconds since the kernel started this process (proc(5): starttime of /proc/self/stat).

    The boot clock is the one that starttime counts in; the date-based creation time of a process
    is off by up to a second.
    """
    # The command name, field 2, may hold spaces; the fields after its last parenthesis do not.
    fields_from_3 = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start_ticks = int(fields_from_3[22 - 3])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")


def peak_rss_bytes() -> int:
    """Peak resident set size of this process in bytes (VmHWM, which the kernel gives in KiB)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM line")


def merge(recipe: str, output: Path) -> None:
    """Merges by `recipe`, the text of a mergekit YAML file, into the folder `output`."""
    # Set before the imports read it: a mistyped path is an error, never a download.
    os.environ["HF_HUB_OFFLINE"] = "1"

    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(
        device="cpu",
        lazy_unpickle=True,
        copy_tokenizer=False,
        write_model_card=False,
        quiet=True,
    )
    options.apply_global_options()
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe))
    run_merge(config, str(output), options=options, config_source=recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="mergekit YAML file")
    parser.add_argument("output", type=Path, help="folder to write; missing or empty")
    args = parser.parse_args()
    try:
        recipe = args.recipe.read_text(encoding="utf-8")
        # Shards of an earlier merge would lie between the new ones.
        if args.output.exists() and any(args.output.iterdir()):
            raise FileExistsError(f"{args.output}: not empty; remove it or choose another OUTPUT")
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        sys.exit(2)
    merge(recipe, args.output)
    seconds = seconds_since_process_start()
    report = {
        "seconds": round(seconds, 3),
        "peak_rss_bytes": peak_rss_bytes(),
        "mergekit": version("mergekit"),
        "torch": version("torch"),
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
