"""Runs that have been trained to their end, found in their folders."""

from pathlib import Path

from coconut_ds.runs.catalogue import find_attempts
from coconut_ds.runs.folder import RunFolder
from coconut_ds.runs.manifest import read_manifest
from coconut_ds.strict_json import JsonError, read_json
from coconut_ds.studies.harness import TrainedRun


def finished_run(label: str, folder: Path) -> TrainedRun | None:
    """The newest completed run below a folder that belongs to one run of a sweep; None if there is none.

    A sweep that was killed after a training and before its evaluation finds it in this way.
    """
    for attempt in reversed(find_attempts(folder)):
        if attempt.status != "completed":
            continue
        try:
            summary = read_json(attempt.folder.summary)
        except (OSError, JsonError):
            continue
        if isinstance(summary, dict) and Path(str(summary.get("last_checkpoint"))).is_dir():
            return with_all_launches(TrainedRun(label, attempt.path, summary, summary["duration_s"]))
    return None


def with_all_launches(run: TrainedRun) -> TrainedRun:
    """The run with the duration of its training if that took several launches: the sum over its epochs.

    An epoch that was interrupted counts from the checkpoint from which it was continued.
    """
    manifest = read_manifest(RunFolder(run.folder).manifest)
    if manifest is None or len(manifest.launches) < 2:
        return run
    seconds = sum(line["perf/epoch_s"] + line["perf/eval_s"] for line in run.evaluations())
    return TrainedRun(run.label, run.folder, run.summary, float(seconds))
