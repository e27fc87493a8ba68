"""The runs of a study file, and of a command line without one, as jobs."""

from collections.abc import Sequence

from coconut_ds.settings.compose import compose_values
from coconut_ds.settings.overrides import Override, read_text
from coconut_ds.settings.schema import validated
from coconut_ds.settings.sweep import StudyConfig, SweepConfig, SweepKeys
from coconut_ds.studies.job import FurtherTest, Job, Probe, Shown


def read_study(name: str) -> tuple[StudyConfig, SweepConfig]:
    """A study file of ``config/study`` and the settings of its sweep."""
    values = compose_values("sweep", SweepKeys, [f"study={name}"])
    return validated(StudyConfig, values["study"]), validated(SweepConfig, values["sweep"])


def study_job(
    study: StudyConfig,
    sweep: SweepConfig,
    task: str,
    row: str,
    seed: int,
    more: Sequence[str] = (),
    varied: Sequence[tuple[str, str]] = (),
) -> Job:
    """The run of a study with one task, row and seed.

    Args:
        study: the study.
        sweep: how its runs are started and evaluated.
        task: name of a task.
        row: name of a row.
        seed: seed of the run.
        more: overrides that the command line adds to all runs.
        varied: keys with several values on the command line besides these three, each with the value of this run.
    """
    chosen, about = study.rows[row], study.tasks[task]
    own = [*chosen.overrides, f"run.seed={seed}", f"run.name={row}"]
    extra = [f"{key}={value}" for key, value in varied]
    after = None
    # A checkpoint that the user gives takes the place of the one of the other row.
    if chosen.after is not None and not any(_key(word) == "load_model_path" for word in [*more, *extra]):
        after = study_job(study, sweep, task, chosen.after, seed, more, varied)
    place = list(study.tasks).index(task) * len(study.rows) + list(study.rows).index(row)
    return Job(
        task,
        (("row", row), *_texts(varied)),
        seed,
        (*study.common, *about.overrides, *own, *more, *extra),
        sweep,
        tuple(more),
        after,
        Shown(about.title or task, about.chance, chosen.paper, place),
        tuple(
            FurtherTest(name, one.title or name, one.overrides)
            for name, one in study.tests.items()
            if one.applies(task, row, seed)
        ),
        tuple(
            Probe(name, one.mode, one.overrides) for name, one in study.probes.items() if one.applies(task, row, seed)
        ),
    )


def _texts(varied: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Keys and values as the table shows them, without the quotes of a command line."""
    return tuple((key, read_text(value, nullable=False) or "") for key, value in varied)


def _key(word: str) -> str:
    return Override.read(word).key.rsplit(".", 1)[-1]


def job_of(words: Sequence[str], sweep: SweepConfig, study: StudyConfig, number: int) -> Job:
    """The run that Hydra asks for.

    Args:
        words: the overrides of the run, as Hydra lists them.
        sweep: the settings of the sweep.
        study: its study; without rows if there is none.
        number: place of the run in the sweep.
    """
    seed = 0
    more: list[str] = []
    varied: list[tuple[str, str]] = []
    for one in map(Override.read, words):
        value = one.value or ""
        if one.key == "run.seed":
            seed = int(value)
        elif one.key in sweep.varied:
            varied.append((one.key, value))
        elif one.key != "study" and not one.key.startswith(("sweep.", "study.")):
            more.append(f"{one.key}={value}")
    if sweep.row is not None and sweep.task is not None:
        return study_job(study, sweep, sweep.task, sweep.row, seed, more, varied)
    pairs = [f"{key}={value}" for key, value in varied]
    overrides = (*more, *pairs, f"run.seed={seed}")
    return Job("", _texts(varied), seed, overrides, sweep, tuple(more), shown=Shown(number=number))
