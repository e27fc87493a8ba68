"""Checks the tests and probes of a study before any of its runs is trained, which may take hours."""

from coconut_ds.errors import ConfigError
from coconut_ds.settings.compose import compose_eval_config, compose_probe_config
from coconut_ds.settings.sweep import StudyConfig, SweepConfig
from coconut_ds.studies.job import FurtherTest, Job, Probe
from coconut_ds.studies.probes import asked_of_probe
from coconut_ds.studies.scoring import asked_overrides, own_data
from coconut_ds.studies.study import study_job

CHECKPOINT = "checkpoint=CHECKPOINT"
"""Stands for the checkpoint, which does not exist yet."""


def check_further(study: StudyConfig, sweep: SweepConfig) -> None:
    """Refuses a test or probe whose overrides are no configuration of its program.

    They are composed with the data of each run of the study, without what the command line adds.

    Raises:
        ConfigError: says which test or probe, and what is wrong with its overrides.
    """
    if not study.tests and not study.probes:
        return
    checked = set()
    for task in study.tasks if sweep.task is None else [sweep.task]:
        for row in study.rows if sweep.row is None else [sweep.row]:
            for seed in study.seeds:
                job = study_job(study, sweep, task, row, seed)
                data = tuple(own_data(job.overrides, sweep))
                further: list[FurtherTest | Probe] = [*job.tests, *job.probes]
                for one in further:
                    if (one, data) not in checked:
                        checked.add((one, data))
                        _check(job, one)


def _check(job: Job, one: FurtherTest | Probe) -> None:
    try:
        if isinstance(one, FurtherTest):
            words = asked_overrides(job.overrides, job.sweep, one.overrides)
            compose_eval_config([CHECKPOINT, *words], job.sweep.config_dirs)
        else:
            compose_probe_config(one.mode, [CHECKPOINT, *asked_of_probe(job, one)], job.sweep.config_dirs)
    except ConfigError as error:
        group = "tests" if isinstance(one, FurtherTest) else "probes"
        raise ConfigError(f"study.{group}.{one.name}.overrides, task {job.task}: {error}") from error
