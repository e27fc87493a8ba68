"""Starts training runs as separate processes, and evaluates their last checkpoints.

For programs that train several models.
"""

import os
import shlex
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
from coconut_ds.results import Identity
from coconut_ds.runs.code import code_identity
from coconut_ds.runs.folder import RUN_LINE
from coconut_ds.runs.identity import flattened
from coconut_ds.settings.compose import compose_eval_config
from coconut_ds.settings.overrides import text_override
from coconut_ds.strict_json import JsonError, read_json
from coconut_ds.training.metrics import read_metrics


class HarnessError(CoconutError):
    """A training process failed."""


@dataclass(frozen=True)
class TrainedRun:
    """A training run that has finished."""

    label: str
    folder: Path
    summary: dict[str, Any]
    """The content of the run's ``summary.json``."""
    duration_s: float

    @property
    def checkpoint(self) -> str:
        """Path of the last checkpoint."""
        return str(self.summary["last_checkpoint"])

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` with validation results."""
        return [line for line in read_metrics(self.folder / "metrics.jsonl") if "eval/accuracy" in line]


def launch_run(
    label: str,
    overrides: Sequence[str],
    show: Callable[[str], object],
    with_deepspeed: bool = True,
    program: Sequence[str] = (),
) -> TrainedRun:
    """Runs one training process on one accelerator or core, and waits for it to finish.

    Args:
        label: name of the run in error messages.
        overrides: configuration overrides, as on the command line.
        show: called with each line of the process's output.
        with_deepspeed: use the ``deepspeed`` launcher; plain Python otherwise, which starts some seconds faster.
        program: the training script and its arguments before the overrides; ``train.py`` by default.

    Raises:
        HarnessError: the process ended with an exit code other than 0, or without writing ``summary.json``.
    """
    started = time.perf_counter()
    command = [*(launcher(1) if with_deepspeed else [sys.executable]), *(program or [str(train_script())]), *overrides]
    # One thread, because the tensors are tiny and several runs share the CPU.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **accelerator_variable()}
    folder = None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            show(line)
            if line.startswith(RUN_LINE):
                folder = Path(*shlex.split(line.removeprefix(RUN_LINE)))
    if process.returncode != 0 or folder is None or not (folder / "summary.json").is_file():
        raise HarnessError(f"{label}: the training process failed (exit code {process.returncode}); see its output")
    summary = stored_json(folder / "summary.json")
    return TrainedRun(label, folder, summary, time.perf_counter() - started)


def accelerator_variable() -> dict[str, str]:
    """What tells DeepSpeed's launcher that there is no accelerator: otherwise it warns in each process."""
    # Imported here: the studies load without torch.
    import torch

    return {} if torch.accelerator.is_available() or "DS_ACCELERATOR" in os.environ else {"DS_ACCELERATOR": "cpu"}


def stored_json(path: Path) -> Any:
    """The content of a JSON file that a run or a study has written.

    Raises:
        HarnessError: it cannot be read.
    """
    try:
        return read_json(path)
    except (OSError, JsonError) as error:
        raise HarnessError(f"{path}: is damaged ({error}); remove it and start again") from error


def study_identity(**values: Any) -> Identity:
    """What a study's result is made from: ``values`` (overrides, seeds, sizes), and the code."""
    return Identity(flattened({**values, "code": code_identity()}))


def score_on_test(run: TrainedRun, overrides: Sequence[str], out: Path) -> float:
    """Evaluates the last checkpoint and returns its accuracy, from 0 to 1.

    Args:
        run: the finished training run.
        overrides: overrides of the evaluation's configuration; they choose the test problems.
        out: folder of the evaluation's results. It belongs to the caller's own result, so what is there is replaced.
    """
    from coconut_ds.evaluation.session import evaluate

    config = compose_eval_config(
        [text_override("checkpoint", run.checkpoint), text_override("out", out), "overwrite=true", *overrides]
    )
    return evaluate(config)[0].accuracy


def data_overrides(overrides: Sequence[str]) -> list[str]:
    """Selects the overrides of a training run that determine its problems, to evaluate on the same kind of problems."""
    return [override for override in overrides if override.startswith(("data", "num_terms=", "modulus=", "size."))]
