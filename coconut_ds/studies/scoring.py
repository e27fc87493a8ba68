"""Evaluates the checkpoint of a run in a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coconut_ds.distributed.interrupts import EXIT_CODE
from coconut_ds.distributed.launcher import starting
from coconut_ds.files import evaluate_script
from coconut_ds.settings import EvalConfig
from coconut_ds.settings.compose import chosen_option, compose_config
from coconut_ds.settings.overrides import Override, full_key, text_override
from coconut_ds.settings.sweep import SweepConfig
from coconut_ds.studies.harness import HarnessError, StoppedError, data_overrides, run_program, stored_json

LOG, EVALUATION, SCORES, SWEEP = "log.txt", "evaluation", "scores.json", "sweep.json"


def evaluated_with(sweep: SweepConfig) -> dict[str, Any]:
    """The settings of a sweep that can change the accuracy of a run that has been trained."""
    return {"checkpoint": sweep.checkpoint, "test": without_batch_size(sweep.test)}


def without_batch_size(overrides: Sequence[str]) -> list[str]:
    """Those of an evaluation's overrides that can change its result."""
    return [word for word in overrides if not word.startswith("batch_size=")]


def evaluation_overrides(
    overrides: Sequence[str], seed: int, sweep: SweepConfig, further: Sequence[str] = ()
) -> list[str]:
    """The overrides of the evaluation of a run: its seed and precision, then what ``asked_overrides`` returns.

    Args:
        overrides: of the run.
        seed: of the run; generated problems depend on it.
        sweep: its settings.
        further: overrides of a further test.
    """
    return [f"seed={seed}", *precision_overrides(overrides, sweep), *asked_overrides(overrides, sweep, further)]


def asked_overrides(overrides: Sequence[str], sweep: SweepConfig, further: Sequence[str] = ()) -> list[str]:
    """The overrides of an evaluation that choose problems, those of ``sweep.test``, and those of a further test.

    Args:
        overrides: of the run.
        sweep: its settings. If ``sweep.test`` chooses ``data``, the problems of the run do not count.
        further: overrides of a further test. If they choose ``data``, the problems of the main evaluation do not count.
    """
    test = sweep.test
    if chooses_data(further):
        test = tuple(word for word in test if not _is_about_data(word))
    own = [] if chooses_data([*test, *further]) else own_data(overrides, sweep)
    return [*own, *test, *further]


def own_data(overrides: Sequence[str], sweep: SweepConfig) -> list[str]:
    """The overrides that choose the problems of a run, also if another option (``run=quick``) or the default does."""
    own = data_overrides(overrides)
    return own if chooses_data(own) else [f"data={chosen_option('data', overrides, sweep.config_dirs)}", *own]


def precision_overrides(overrides: Sequence[str], sweep: SweepConfig) -> list[str]:
    """The overrides that let a program compute in the precision of a run."""
    run = compose_config(overrides, sweep.config_dirs).run
    return [f"{key}=true" for key in ("bf16", "tf32") if getattr(run, key)]


def chooses_data(overrides: Sequence[str]) -> bool:
    """Whether overrides choose a data group or a file, instead of changing keys of another one."""
    return any(Override.read(word).key == "data" for word in overrides)


def _is_about_data(word: str) -> bool:
    one = Override.read(word)
    return one.key == "data" or (one.key not in EvalConfig.model_fields and full_key(one, EvalConfig)[:5] == "data.")


def score(checkpoint: str, overrides: Sequence[str], folder: Path, sweep: SweepConfig) -> float:
    """Evaluates a checkpoint and returns its accuracy, from 0 to 1. The results are in ``folder/evaluation``.

    Raises:
        StoppedError: the processes were asked to stop, and have stored the finished predictions.
        HarnessError: the evaluation failed.
    """
    run_evaluation(checkpoint, overrides, folder, sweep, EVALUATION)
    return float(stored_json(folder / EVALUATION / SCORES)["accuracy"])


def run_evaluation(checkpoint: str, overrides: Sequence[str], folder: Path, sweep: SweepConfig, name: str) -> None:
    """Evaluates a checkpoint. The results are in ``folder/name``.

    It runs in processes of its own, started as the run was, so that their memory on an accelerator is free again at the
    end. With a launcher, its ranks share the problems.

    Raises:
        StoppedError: the processes were asked to stop, and have stored the finished predictions.
        HarnessError: the evaluation failed.
    """
    out = folder / name
    words = [text_override("checkpoint", checkpoint), text_override("out", out), "overwrite=true", *overrides]
    words += config_options(sweep)
    with (folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
        command = [*starting(sweep.start, sweep.ranks), str(evaluate_script()), *words]
        code = run_program(command, log.write, sweep.threads)
    if code == EXIT_CODE:
        raise StoppedError(f"{checkpoint}: the evaluation was stopped; the same command continues it")
    if code != 0:
        raise HarnessError(f"{checkpoint}: the evaluation failed (exit code {code}); see {folder / LOG}")


def config_options(sweep: SweepConfig) -> list[str]:
    """The options by which a program searches the user's own folders for options of groups."""
    return [f"--config-dir={folder}" for folder in sweep.config_dirs]
