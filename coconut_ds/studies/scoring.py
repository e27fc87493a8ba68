"""Evaluates the checkpoint of a run in a sweep."""

from collections.abc import Sequence
from pathlib import Path

from coconut_ds.distributed.interrupts import EXIT_CODE
from coconut_ds.distributed.launcher import starting
from coconut_ds.files import evaluate_script
from coconut_ds.settings.compose import compose_config
from coconut_ds.settings.overrides import Override, text_override
from coconut_ds.settings.sweep import SweepConfig
from coconut_ds.studies.harness import HarnessError, StoppedError, data_overrides, run_program, stored_json

LOG, EVALUATION, SCORES = "log.txt", "evaluation", "scores.json"


def evaluation_overrides(overrides: Sequence[str], seed: int, sweep: SweepConfig) -> list[str]:
    """The overrides of the evaluation of a run: its problems, seed and precision, then those of ``sweep.test``.

    Args:
        overrides: of the run.
        seed: of the run; generated problems depend on it.
        sweep: its settings. If ``sweep.test`` chooses ``data``, the problems of the run do not count.
    """
    run = compose_config(overrides, sweep.config_dirs).run
    precision = [f"{key}=true" for key in ("bf16", "tf32") if getattr(run, key)]
    own = [] if any(Override.read(word).key == "data" for word in sweep.test) else data_overrides(overrides)
    return [*own, f"seed={seed}", *precision, *sweep.test]


def score(checkpoint: str, overrides: Sequence[str], folder: Path, sweep: SweepConfig) -> float:
    """Evaluates a checkpoint and returns its accuracy, from 0 to 1. The results are in ``folder/evaluation``.

    It runs in processes of its own, started as the run was, so that their memory on an accelerator is free again at the
    end. With a launcher, its ranks share the problems.

    Raises:
        StoppedError: the processes were asked to stop, and have stored the finished predictions.
        HarnessError: the evaluation failed.
    """
    out = folder / EVALUATION
    words = [text_override("checkpoint", checkpoint), text_override("out", out), "overwrite=true", *overrides]
    words += config_options(sweep)
    with (folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
        command = [*starting(sweep.start, sweep.ranks), str(evaluate_script()), *words]
        code = run_program(command, log.write, sweep.threads)
    if code == EXIT_CODE:
        raise StoppedError(f"{checkpoint}: the evaluation was stopped; the same command continues it")
    if code != 0:
        raise HarnessError(f"{checkpoint}: the evaluation failed (exit code {code}); see {folder / LOG}")
    return float(stored_json(out / SCORES)["accuracy"])


def config_options(sweep: SweepConfig) -> list[str]:
    """The options by which a program searches the user's own folders for options of groups."""
    return [f"--config-dir={folder}" for folder in sweep.config_dirs]
