"""The command line: `python -m clinmerge_jax.main --config=configs/JOB.py[:arg] [--config.field=value ...]`.

On several machines, every process runs this same command with --distributed=auto (TPU pods, SLURM, MPI), or with
--distributed=HOST:PORT --num_processes=N --process_id=I.

Exit status: 0 success; 1 the run failed or the disk is full; 2 bad input, with one line that says how to fix it.
"""

import importlib
import logging as python_logging
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from clinmerge_jax import full_disk, offline
from clinmerge_jax.command_line import parse_flags, refuse
from clinmerge_jax.errors import BadInput, ending

JOBS = (
    "merge", "inspect", "extract_lora", "convert", "sft", "sft_grid", "generate", "evaluate", "correlate", "compare",
    "miniature", "miniature_page", "benchmark",
)  # fmt: skip
_ONE_PROCESS_JOBS = tuple(job for job in JOBS if job not in ("merge", "sft"))

_CONFIG = config_flags.DEFINE_config_file("config", None, "The job: configs/JOB.py[:arg]", lock_config=True)
_DISTRIBUTED = flags.DEFINE_string("distributed", "", "auto, or HOST:PORT of process 0; empty for one process alone")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes run this command")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0")


def _of_interest(record: python_logging.LogRecord) -> bool:
    """False for INFO records of Orbax (per file), rouge-score (per scorer) and TensorFlow Datasets (per look-up)."""
    noisy = ("orbax", "rouge_score", "tensorflow_datasets")
    return record.levelno > python_logging.INFO or not any(name in record.pathname for name in noisy)


def main(_: Sequence[str]) -> None:
    """Runs the job that the config names."""
    config = _CONFIG.value
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    python_logging.getLogger("jax").setLevel("WARNING")  # hides the list of backends that it looked for
    logging.get_absl_logger().addFilter(_of_interest)
    try:
        if config.job not in JOBS:
            raise BadInput(f"config.job: {config.job!r} is unknown; choose from {', '.join(JOBS)}")
        if _DISTRIBUTED.value and config.job in _ONE_PROCESS_JOBS:
            raise BadInput(f"--distributed: {config.job} runs in one process; leave the flag out")
        distributed = importlib.import_module("clinmerge_jax.parallel.distributed")
        full_disk.report_once()
        with (
            offline.session(config.get("offline", False)),
            distributed.session(_DISTRIBUTED.value, _NUM_PROCESSES.value, _PROCESS_ID.value),
        ):
            job = importlib.import_module(f"clinmerge_jax.jobs.{config.job}")
            # A single process is the first. is_first() would start the devices, which benchmarks leave to subprocesses.
            first = not _DISTRIBUTED.value or distributed.is_first()
            logging.set_verbosity(logging.INFO if first else logging.ERROR)
            job.run(config)
    except Exception as error:
        end = ending(error)
        if end is None:
            raise
        full_disk.end_writers(error)
        refuse(*end)


if __name__ == "__main__":
    with full_disk.no_waiting():
        app.run(main, flags_parser=parse_flags)
