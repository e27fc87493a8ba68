"""The work on one run of a sweep: its training, its evaluation, and the result that is kept.

A sweep can be stopped at any moment and continued by the same command. A finished run has a ``result.json`` in its
folder and is not repeated unless its overrides, its files or the code have changed. Nothing is replaced: a run with
another identity gets a folder of its own, whose name ends with its signature. Each run also has a *record* in the
folder ``jobs``, which tells ``studies.table`` what was asked for and, if the run failed, why.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from coconut_ds.errors import CoconutError, ConfigError
from coconut_ds.files import write_whole
from coconut_ds.results import ResultFolder, places_to_read
from coconut_ds.runs.identity import signature
from coconut_ds.settings.overrides import text_override
from coconut_ds.settings.sweep import SweepConfig
from coconut_ds.strict_json import JsonError, read_json
from coconut_ds.studies.further import add_further, asked_further, kept_further, lacks_further
from coconut_ds.studies.harness import HarnessError, StoppedError, TrainedRun, launch_run
from coconut_ds.studies.job import RESULT, Job
from coconut_ds.studies.scoring import LOG, config_options, evaluated_with, evaluation_overrides, score
from coconut_ds.studies.trained import finished_run, with_all_launches

RECORDS = "jobs"
"""Folder of the records of a sweep's runs."""
FAILED = "failed"
EARLIER: dict[str, Any] = {"checkpoint": "last", "test": []}
"""``evaluated_with`` of results of earlier versions of this program, which did not store it."""
LAST_LINES = 12
"""Number of lines of the log that the record of a failed run keeps."""


class FailedRunError(HarnessError):
    """A run, or the one that it starts from, has failed in this launch of the sweep."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = list(lines)
        """The last lines of its log."""


def finish(job: Job, further: bool = True) -> dict[str, Any]:
    """Trains and evaluates a run, unless its result is there, then runs the tests and probes that it lacks.

    Another process that works on the same run is waited for. If this ends with an error, the record of the run says
    why.

    Args:
        job: the run.
        further: whether to run tests and probes. A run that starts from this one does not need them.

    Returns:
        The result of the run.

    Raises:
        CoconutError: the run failed, now or earlier in this launch of the sweep.
    """
    folder = job.folder()
    try:
        results = job.results()
        folder = results.path
        with _locked(folder):
            result, folder = stored(job, results)
            if result is None:
                _refuse_failed(job)
                record(job, folder, "started")
                result = _make(job, results)
            elif not further and _failure(job) is not None:
                # A test or probe of it has failed in this launch, which the record keeps.
                return result
            if further and lacks_further(asked_further(job), result):
                record(job, folder, "started")
                add_further(job, folder, result)
            record(job, folder, "finished")
            return result
    except BaseException as error:
        _record_error(job, folder, error)
        raise


def _refuse_failed(job: Job) -> None:
    """Refuses a run that has failed in this launch of the sweep: each row that starts from it would train it again.

    Raises:
        FailedRunError: has the error and the lines of the log that were recorded.
    """
    if (found := _failure(job)) is not None:
        raise FailedRunError(found["error"], found["lines"])


def _failure(job: Job) -> dict[str, Any] | None:
    """The record of a run that has failed in this launch of the sweep; None if it has not."""
    try:
        found: dict[str, Any] = read_json(_record_path(job))
    except (OSError, JsonError):
        return None
    launch = job.sweep.launch
    return found if launch is not None and (found.get("status"), found.get("launch")) == (FAILED, launch) else None


def _record_error(job: Job, folder: Path, error: BaseException) -> None:
    if isinstance(error, StoppedError) or not isinstance(error, Exception):
        # Ctrl-C, or SIGTERM, which the sweep treats alike.
        record(job, folder, "stopped", error=str(error) or type(error).__name__, lines=[])
        return
    text = str(error) if isinstance(error, CoconutError) else f"{type(error).__name__}: {error}"
    lines = _last_lines(folder / LOG) if isinstance(error, HarnessError) else []
    record(job, folder, FAILED, error=text, lines=error.lines if isinstance(error, FailedRunError) else lines)


def stored(job: Job, results: ResultFolder) -> tuple[dict[str, Any] | None, Path]:
    """The stored result of a finished run with the same identity and evaluation, and its folder; None if there is none.

    A result of an earlier version of this program, which did not store the code, counts too.
    """
    for place in places_to_read(results, job.folder()):
        result = stored_result(place / RESULT, job.overrides)
        # If only the evaluation differs, the run is evaluated again, but not trained again.
        if result is not None and result.get("evaluated_with", EARLIER) == evaluated_with(job.sweep):
            return result, place
    return None, results.path


def stored_result(path: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The result of a finished run with these overrides; None if there is none, or the file is damaged."""
    try:
        result = read_json(path)
    except (OSError, JsonError):
        # A full disk or a crash of the machine may have damaged it; the run is repeated.
        return None
    return result if isinstance(result, dict) and result.get("overrides") == list(overrides) else None


def finish_all(jobs: Sequence[Job], lanes: int) -> tuple[dict[Job, dict[str, Any]], dict[Job, CoconutError]]:
    """Finishes all runs, ``lanes`` at the same time.

    Returns the results of the runs that succeeded, and the errors of those that failed.
    """
    done: dict[Job, dict[str, Any]] = {}
    failed: dict[Job, CoconutError] = {}
    with ThreadPoolExecutor(lanes) as pool, tqdm(total=len(jobs), unit="run", disable=None) as bar:
        started = {pool.submit(finish, job): job for job in jobs}
        for future in as_completed(started):
            job, error = started[future], future.exception()
            if isinstance(error, CoconutError):
                failed[job] = error
            else:
                done[job] = future.result()
                tqdm.write(described(job, done[job]), file=sys.stdout)
            bar.update()
    return done, failed


def described(job: Job, result: Mapping[str, Any]) -> str:
    """One line about a finished run."""
    return f"{job}: {result['accuracy']:.1%} in {result['duration_s']:.0f} s"


def _make(job: Job, results: ResultFolder) -> dict[str, Any]:
    """Trains and evaluates a run. ``result.json`` is written last, so that it marks a finished run."""
    sweep = job.sweep
    run = launch_in(results, str(job), [*job.overrides, *_start_from(job)], sweep)
    began = time.perf_counter()
    checkpoint = str(run.summary[f"{sweep.checkpoint}_checkpoint"] or run.checkpoint)
    accuracy = score(checkpoint, evaluation_overrides(job.overrides, job.seed, sweep), results.path, sweep)
    last = run.evaluations()[-1]
    result = {
        "overrides": list(job.overrides),
        "accuracy": accuracy,
        "validation_accuracy": run.summary.get(f"{sweep.checkpoint}_accuracy"),
        "stage": last["eval/stage"],
        "wholly_right": last["eval/wholly_right"],
        "num_thoughts": last["eval/num_thoughts"],
        "num_pauses": last["eval/num_pauses"],
        "updates": run.summary["updates"],
        "stage_switches": run.summary["stage_switches"],
        "duration_s": round(run.duration_s, 1),
        "evaluation_s": round(time.perf_counter() - began, 1),
        "run": str(run.folder),
        "best_checkpoint": run.summary.get("best_checkpoint"),
        "checkpoint": checkpoint,
        "evaluated_with": evaluated_with(sweep),
        **kept_further(stored_result(results.path / RESULT, job.overrides)),
        **results.identity.as_dict(),
    }
    write_whole(results.path / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def _start_from(job: Job) -> list[str]:
    """The override that lets a run start from the best checkpoint of another, which is trained first."""
    if job.after is None:
        return []
    log = job.after.results().path / LOG
    try:
        result = finish(job.after, further=False)
    except StoppedError:
        raise
    except CoconutError as error:
        lines = error.lines if isinstance(error, FailedRunError) else _last_lines(log)
        raise FailedRunError(f"{job}: the run that it starts from has failed ({error}); see {log}", lines) from error
    return [text_override("run.load_model_path", result["best_checkpoint"] or result["checkpoint"])]


def launch_in(results: ResultFolder, label: str, overrides: Sequence[str], sweep: SweepConfig) -> TrainedRun:
    """Trains a run in the folder of its result, beside its log; finds one that has been trained to its end there.

    Raises:
        HarnessError: the run failed.
    """
    results.take()
    folder = results.path
    found = finished_run(label, folder)
    if found is not None:
        return found
    with (folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
        words = [*overrides, text_override("run.save_path", folder), *config_options(sweep)]
        run = launch_run(label, words, log.write, sweep.start, sweep.ranks, sweep.threads)
    return with_all_launches(run)


def record(job: Job, folder: Path, status: str, **more: Any) -> None:
    """Writes the record of a run, which has one for each row, seed and set of overrides.

    Raises:
        ConfigError: the folder of the sweep cannot be written.
    """
    values = {
        **_asked(job),
        "more": list(job.more),
        "folder": os.path.relpath(folder, job.out),
        "status": status,
        "time": round(time.time(), 3),
        "launch": job.sweep.launch,
        "baseline": job.sweep.baseline,
        **asdict(job.shown),
        **asked_further(job),
        **more,
    }
    path = _record_path(job)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"out={job.out}: cannot be written ({error.strerror}); set it to another folder") from error


def _asked(job: Job) -> dict[str, Any]:
    """What tells the records of a sweep apart."""
    row = [list(pair) for pair in job.row]
    return {"task": job.task, "row": row, "seed": job.seed, "overrides": list(job.overrides)}


def _record_path(job: Job) -> Path:
    return job.out / RECORDS / f"{signature(_asked(job))}.json"


def _last_lines(path: Path) -> list[str]:
    """The last lines of a log that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()][-LAST_LINES:]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Held by one process at a time for each folder of a run; the system releases the lock of a process that ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield
