"""Probes of a run's checkpoint: ``coconut-probe`` in a process of its own."""

import sys
from pathlib import Path
from typing import Any

from coconut_ds.files import probe_script
from coconut_ds.settings.overrides import text_override
from coconut_ds.studies.harness import HarnessError, run_program
from coconut_ds.studies.job import Job, Probe
from coconut_ds.studies.scoring import LOG, chooses_data, config_options, own_data, precision_overrides


def folder_of_probe(name: str) -> str:
    """Name of the folder with the results of a probe, in that of the run's result."""
    return f"probe_{name}"


def made_with_probe(job: Job, probe: Probe) -> dict[str, Any]:
    """What can change the result of a probe of a run that has been trained."""
    return {"checkpoint": job.sweep.checkpoint, "mode": probe.mode, "overrides": list(probe.overrides)}


def asked_of_probe(job: Job, probe: Probe) -> list[str]:
    """The overrides of a probe that choose the run's problems, and its own.

    If its own choose ``data``, the problems of the run do not count. Those of ``sweep.test`` never do, since an
    evaluation has other keys.
    """
    return [*([] if chooses_data(probe.overrides) else own_data(job.overrides, job.sweep)), *probe.overrides]


def run_probe(job: Job, probe: Probe, checkpoint: str, folder: Path) -> dict[str, Any]:
    """Probes a checkpoint, in one process without a launcher. The results are in ``folder/probe_NAME``.

    Raises:
        HarnessError: the probe failed.
    """
    out = folder / folder_of_probe(probe.name)
    words = [text_override("checkpoint", checkpoint), text_override("out", out), "overwrite=true"]
    words += [f"seed={job.seed}", *precision_overrides(job.overrides, job.sweep)]
    words += [*asked_of_probe(job, probe), *config_options(job.sweep)]
    with (folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
        command = [sys.executable, str(probe_script()), probe.mode, *words]
        code = run_program(command, log.write, job.sweep.threads)
    if code != 0:
        raise HarnessError(f"{checkpoint}: the probe failed (exit code {code}); see {folder / LOG}")
    return {"folder": out.name}
