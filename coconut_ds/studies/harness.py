"""Runs as processes, for programs that start several: training under a launcher, then the last checkpoint's score."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.distributed.launcher import launcher
from coconut_ds.errors import CoconutError
from coconut_ds.files import train_script
from coconut_ds.runs.folder import RUN_LINE
from coconut_ds.settings.compose import compose_eval_config
from coconut_ds.training.metrics import read_metrics


class HarnessError(CoconutError):
    """A training process did not end as it should."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that ended."""

    label: str
    folder: Path
    summary: dict[str, Any]
    duration_s: float

    @property
    def checkpoint(self) -> str:
        """The last one."""
        return str(self.summary["last_checkpoint"])

    def evaluations(self) -> list[dict[str, Any]]:
        """Lines of ``metrics.jsonl`` about validation."""
        return [line for line in read_metrics(self.folder / "metrics.jsonl") if "eval/accuracy" in line]


def launch_run(
    label: str,
    overrides: Sequence[str],
    show: Callable[[str], object],
    with_deepspeed: bool = True,
    program: Sequence[str] = (),
) -> TrainedRun:
    """One training process on one accelerator or core.

    Args:
        label: names the run in errors.
        overrides: as on the command line.
        show: gets each line of output.
        with_deepspeed: under the ``deepspeed`` launcher; else plain Python, which starts some seconds sooner.
        program: a script that trains, and what it takes before the overrides; default: ``train.py``.

    Raises:
        HarnessError: it ended with another exit code than 0.
    """
    started = time.perf_counter()
    command = [*(launcher(1) if with_deepspeed else [sys.executable]), *(program or [str(train_script())]), *overrides]
    # One thread: the tensors are tiny, and runs stand beside each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            show(line)
            if line.startswith(RUN_LINE):
                folder = Path(line.removeprefix(RUN_LINE).rstrip("\n"))
    if process.returncode != 0 or folder is None or not (folder / "summary.json").is_file():
        raise HarnessError(f"{label} ended with exit code {process.returncode}; see its lines")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return TrainedRun(label, folder, summary, time.perf_counter() - started)


def score_on_test(run: TrainedRun, overrides: Sequence[str], out: Path) -> float:
    """Accuracy of the last checkpoint on the test problems that ``overrides`` (of the evaluation) name."""
    from coconut_ds.evaluation.session import evaluate

    config = compose_eval_config([f"checkpoint={quoted(run.checkpoint)}", f"out={quoted(out)}", *overrides])
    return evaluate(config)[0].accuracy


def data_overrides(overrides: Sequence[str]) -> list[str]:
    """Those overrides of a training run that change its problems, for an evaluation."""
    return [override for override in overrides if override.startswith(("data", "num_terms=", "modulus=", "size."))]


def quoted(path: str | Path) -> str:
    """A path as a Hydra value, whatever signs it holds."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
