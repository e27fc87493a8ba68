"""The settings of ``coconut-sweep``: what it does with each run, and the study files of ``config/study``."""

from collections.abc import Iterator, Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from coconut_ds.settings.config import Config
from coconut_ds.settings.further import NAME, FurtherConfig, FurtherTestConfig, StudyProbeConfig
from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Positive, Share


class SweepConfig(Group):
    """What a sweep does with each of its runs. These keys may be written without ``sweep.``."""

    out: str = "outputs/sweep"
    """Folder of the runs, their results and the table. The same command finds them there and continues."""
    row: str | None = None
    """Row of the study; several names (row=coconut,pause) are several runs. Null: all rows."""
    task: str | None = None
    """Task of the study; several names are several runs. Null: all tasks."""
    baseline: str | None = None
    """Row that the others are compared with: a row of the study, or values of what varies (baseline=no_thoughts,
    baseline=method=no_thoughts). Null: no comparison."""
    start: Literal["plain", "deepspeed", "torchrun"] = "plain"
    """What starts each run: Python alone, which has one process, or a launcher."""
    ranks: Positive = 1
    """Processes of each run on its machine, with start=deepspeed or torchrun."""
    threads: Positive | None = None
    """OMP_NUM_THREADS of each run; null: as in the environment."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint is evaluated: the best one of the last stage on validation problems, or the last one."""
    test: tuple[str, ...] = ()
    """Overrides of the evaluation, as for coconut_ds/evaluate.py. Without data=, the problems are those of the run's
    data: its test problems, or its validation problems if it has no test problems."""
    varied: tuple[str, ...] = ()
    """Keys with several values on the command line; set automatically."""
    config_dirs: tuple[str, ...] = ()
    """Folders of --config-dir; set automatically."""
    launch: str | None = None
    """Id of this launch of the sweep, in which a run that has failed is not tried again; set automatically."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start == "plain" and self.ranks > 1:
            raise ValueError(f"ranks={self.ranks} needs a launcher; set start=deepspeed or start=torchrun")
        return self


class TaskConfig(Group):
    """A task that the rows of a study are compared on."""

    overrides: tuple[str, ...] = ()
    """Overrides of its runs."""
    title: str = ""
    """Description for tables and figures; empty: the name of the task."""
    chance: Share | None = None
    """Accuracy of guessing, from 0 to 1."""


class RowConfig(Group):
    """A row of a study."""

    overrides: tuple[str, ...] = ()
    """Overrides of its runs."""
    after: str | None = None
    """Row whose checkpoint with the same seed it starts from, which is trained first."""
    paper: str | None = None
    """The accuracy in percent that the paper reports, as text: 34.1 ± 1.5."""


class StudyConfig(Group):
    """A set of runs: rows that are compared on tasks, with several seeds."""

    title: str = ""
    """One line about the study."""
    common: tuple[str, ...] = ()
    """Overrides of all runs, before those of task and row."""
    tasks: Mapping[str, TaskConfig] = Field(default_factory=dict)
    """The tasks by name."""
    rows: Mapping[str, RowConfig] = Field(default_factory=dict)
    """The rows by name, in the order of the table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs, unless run.seed is set."""
    paper: str = ""
    """Where the numbers of ``rows.*.paper`` are from."""
    tests: Mapping[str, FurtherTestConfig] = Field(default_factory=dict)
    """Further tests of each run's checkpoint by name, with overrides of coconut-eval on top of ``sweep.test``."""
    probes: Mapping[str, StudyProbeConfig] = Field(default_factory=dict)
    """Probes of each run's checkpoint by name, with overrides of coconut-probe."""

    def further(self) -> Iterator[tuple[str, str, FurtherConfig]]:
        """Its tests and probes, each with the name of the group (tests, probes) and its own name."""
        yield from (("tests", name, one) for name, one in self.tests.items())
        yield from (("probes", name, one) for name, one in self.probes.items())

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, row in self.rows.items():
            if row.after is not None and (row.after not in self.rows or self.rows[row.after].after is not None):
                raise ValueError(
                    f"rows.{name}.after: found {row.after}, expected the name of a row that starts from no other"
                )
        for group, name, further in self.further():
            if NAME.fullmatch(name) is None:
                raise ValueError(f"{group}: found the name {name!r}, expected letters, digits, _ and - alone")
            for key, chosen, names in (("tasks", further.tasks, self.tasks), ("rows", further.rows, self.rows)):
                if unknown := [one for one in chosen or () if one not in names]:
                    has = ", ".join(names) or "none"
                    raise ValueError(f"{group}.{name}.{key}: found {unknown[0]}, expected some of {has}")
        return self


class SweepKeys(Config):
    """All keys that the command line of a sweep may set. Never instantiated; it only lists the keys."""

    sweep: SweepConfig = Field(default_factory=SweepConfig)
    study: StudyConfig = Field(default_factory=StudyConfig)
