"""Starts training runs as separate processes, and evaluates their checkpoints.

For programs that train several models.
"""

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.distributed.interrupts import EXIT_CODE
from coconut_ds.distributed.launcher import starting
from coconut_ds.errors import CoconutError
from coconut_ds.files import train_script
from coconut_ds.results import Identity
from coconut_ds.runs.code import code_identity
from coconut_ds.runs.folder import RUN_LINE
from coconut_ds.runs.identity import flattened
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_eval_config
from coconut_ds.settings.overrides import Override, full_key, text_override
from coconut_ds.strict_json import JsonError, read_json
from coconut_ds.training.metrics import read_metrics


class HarnessError(CoconutError):
    """A process of a run failed."""


class StoppedError(HarnessError):
    """A process of a run was asked to stop, and has saved."""


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
    start: str = "deepspeed",
    ranks: int = 1,
    threads: int | None = 1,
    program: Sequence[str] = (),
) -> TrainedRun:
    """Trains one run in processes of its own, and waits for them to finish.

    Args:
        label: name of the run in error messages.
        overrides: configuration overrides, as on the command line.
        show: called with each line of the process's output.
        start: ``deepspeed``, ``torchrun``, or ``plain`` for Python alone, which starts some seconds faster.
        ranks: number of processes; 1 with ``plain``.
        threads: OMP_NUM_THREADS of each; None: as in this process. One thread suits tiny tensors and several runs that
            share a CPU.
        program: the training script and its arguments before the overrides; ``train.py`` by default.

    Raises:
        StoppedError: the processes were asked to stop, and have saved.
        HarnessError: they ended with another exit code than 0, or without writing ``summary.json``.
    """
    began = time.perf_counter()
    folder: Path | None = None

    def read(line: str) -> None:
        nonlocal folder
        show(line)
        if line.startswith(RUN_LINE):
            folder = Path(*shlex.split(line.removeprefix(RUN_LINE)))

    code = run_program([*starting(start, ranks), *(program or [str(train_script())]), *overrides], read, threads)
    if code == EXIT_CODE:
        raise StoppedError(f"{label}: stopped; it has saved, and the same command continues it")
    if code != 0 or folder is None or not (folder / "summary.json").is_file():
        raise HarnessError(f"{label}: the training process failed (exit code {code}); see its output")
    summary = stored_json(folder / "summary.json")
    return TrainedRun(label, folder, summary, time.perf_counter() - began)


def run_program(command: Sequence[str], show: Callable[[str], object], threads: int | None) -> int:
    """Runs a program to its end, passes each line of its output on, and returns its exit code.

    If this is interrupted, the program is asked to stop and waited for, since a training run then saves; a second
    interruption ends the waiting.
    """
    environment = {
        **os.environ,
        **({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
        **accelerator_variable(),
    }
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                show(line)
        except BaseException:
            process.terminate()
            for line in process.stdout:
                # The error that is raised says more than that its output cannot be shown.
                with suppress(Exception):
                    show(line)
            process.wait()
            raise
    return process.returncode


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
    """Evaluates the last checkpoint in this process and returns its accuracy, from 0 to 1.

    Args:
        run: the finished training run.
        overrides: overrides of the evaluation's configuration; they choose the test problems.
        out: folder of the evaluation's results. It belongs to the caller's own result, so what is there is replaced.
    """
    from coconut_ds.evaluation.session import evaluate

    words = [text_override("checkpoint", run.checkpoint), text_override("out", out), "overwrite=true", *overrides]
    return evaluate(compose_eval_config(words))[0].accuracy


def data_overrides(overrides: Sequence[str]) -> list[str]:
    """Selects the overrides of a training run that determine its problems, to evaluate on the same kind of problems."""
    words = ((Override.read(word), word) for word in overrides)
    return [word for one, word in words if one.key == "data" or full_key_of(one).startswith("data.")]


def full_key_of(override: Override) -> str:
    """The full name of the key that an override of a run sets; a group's own name for ``group=option``."""
    return override.key if override.key in Config.model_fields else full_key(override, Config)
