"""Further tests of a run's checkpoint: evaluations with overrides on top of the main one's."""

from pathlib import Path
from typing import Any

from coconut_ds.studies.harness import HarnessError, stored_json
from coconut_ds.studies.job import FurtherTest, Job
from coconut_ds.studies.scoring import (
    EVALUATION,
    SCORES,
    SWEEP,
    evaluated_with,
    evaluation_overrides,
    run_evaluation,
    without_batch_size,
)

ACCURACY, BY_THOUGHTS = "accuracy", "accuracy_by_thoughts"
"""Keys of a test's result: its accuracy, from 0 to 1, or a mapping from numbers of thoughts (as text) to accuracies."""


def folder_of_test(name: str) -> str:
    """Name of the folder with the results of a test, beside that of the main evaluation."""
    return f"{EVALUATION}_{name}"


def made_with_test(job: Job, test: FurtherTest) -> dict[str, Any]:
    """What can change the result of a test of a run that has been trained."""
    return {**evaluated_with(job.sweep), "overrides": without_batch_size(test.overrides)}


def run_test(job: Job, test: FurtherTest, checkpoint: str, folder: Path) -> dict[str, Any]:
    """Evaluates a checkpoint and returns its accuracy, or one for each number of thoughts.

    Raises:
        StoppedError: the evaluation was asked to stop.
        HarnessError: it failed, or its problems have no answers to compare with.
    """
    words = evaluation_overrides(job.overrides, job.seed, job.sweep, test.overrides)
    name = folder_of_test(test.name)
    run_evaluation(checkpoint, words, folder, job.sweep, name)
    several = (folder / name / SWEEP).is_file()
    scores = stored_json(folder / name / SWEEP) if several else [stored_json(folder / name / SCORES)]
    if any(one["accuracy"] is None for one in scores):
        raise HarnessError(f"{folder / name}: found problems without answers, expected some to compare with; set data=")
    if not several:
        return {ACCURACY: float(scores[0]["accuracy"])}
    return {BY_THOUGHTS: {str(one["num_thoughts"] + one["num_pauses"]): float(one["accuracy"]) for one in scores}}
