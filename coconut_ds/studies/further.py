"""What a sweep does with the checkpoint of a run after its main evaluation: further tests, and probes.

Each is added to ``result.json`` as soon as it is finished, with what it was made with. A sweep that was stopped between
two of them, or whose study has new or changed ones, runs only those that are missing.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from coconut_ds.files import write_whole
from coconut_ds.studies.further_tests import made_with_test, run_test
from coconut_ds.studies.harness import HarnessError, StoppedError
from coconut_ds.studies.job import RESULT, Job
from coconut_ds.studies.probes import made_with_probe, run_probe

TESTS, PROBES, MADE_WITH = "tests", "probes", "made_with"
"""Keys of records and results: names of tests and of probes, each with what makes it."""


def asked_further(job: Job) -> dict[str, dict[str, Any]]:
    """The tests and probes of a run, by name, for its record."""
    tests = {one.name: {"title": one.title, MADE_WITH: made_with_test(job, one)} for one in job.tests}
    probes = {one.name: {MADE_WITH: made_with_probe(job, one)} for one in job.probes}
    return {TESTS: tests, PROBES: probes}


def kept_further(earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """The tests and probes of an earlier result of a run, whose main evaluation has been made again."""
    return {key: earlier[key] for key in (TESTS, PROBES) if key in earlier} if earlier else {}


def finished_further(asked: Mapping[str, Any], result: Mapping[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """Those results of tests (or probes) that were made with what is asked for now.

    Args:
        asked: the record of the run, or what ``asked_further`` returns.
        result: the result of the run.
        kind: ``TESTS`` or ``PROBES``.
    """
    found = result.get(kind, {})
    return {
        name: found[name]
        for name, one in asked.get(kind, {}).items()
        if name in found and found[name][MADE_WITH] == one[MADE_WITH]
    }


def lacks_further(asked: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether a test or a probe of a run is missing, or was made with something else."""
    return any(len(finished_further(asked, result, kind)) < len(asked.get(kind, {})) for kind in (TESTS, PROBES))


def add_further(job: Job, folder: Path, result: dict[str, Any]) -> None:
    """Runs the tests and probes that a run lacks, and adds each to its result, in memory and on the disk.

    One that fails does not stop the others.

    Raises:
        StoppedError: a process was asked to stop.
        HarnessError: some have failed; the message names all of them.
    """
    asked, checkpoint = asked_further(job), str(result["checkpoint"])
    work: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
        *((TESTS, one.name, partial(run_test, job, one, checkpoint, folder)) for one in job.tests),
        *((PROBES, one.name, partial(run_probe, job, one, checkpoint, folder)) for one in job.probes),
    ]
    failed = []
    for kind, name, run in work:
        if name in finished_further(asked, result, kind):
            continue
        try:
            made = run()
        except StoppedError:
            raise
        except HarnessError as error:
            failed.append(f"{kind}.{name}: {error}")
            continue
        result[kind] = {**result.get(kind, {}), name: {**made, MADE_WITH: asked[kind][name][MADE_WITH]}}
        write_whole(folder / RESULT, json.dumps(result, indent=2) + "\n")
    if failed:
        raise HarnessError("; ".join(failed))
