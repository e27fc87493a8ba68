"""What a study does with the checkpoints of its runs besides the main evaluation: further tests, and probes."""

import re
from typing import Self

from pydantic import model_validator

from coconut_ds.settings.overrides import Override
from coconut_ds.settings.probing import ProbeMode
from coconut_ds.settings.schema import Group

NAME = re.compile(r"[A-Za-z0-9_-]+")
"""What a test or probe may be called: its name is a part of the name of a folder."""
SET_BY_SWEEP = ("checkpoint", "out", "overwrite")
"""Keys of both programs that the sweep sets itself."""


class FurtherConfig(Group):
    """What tests and probes have in common."""

    overrides: tuple[str, ...] = ()
    """Overrides of the program. With data=, the problems of the run's own data do not count."""
    tasks: tuple[str, ...] | None = None
    """Tasks of the study to which it applies; null: all."""
    rows: tuple[str, ...] | None = None
    """Rows of the study to which it applies; null: all."""

    @model_validator(mode="after")
    def _check_overrides(self) -> Self:
        for word in self.overrides:
            if (key := Override.read(word).key) in SET_BY_SWEEP:
                raise ValueError(f"overrides: found {word}, expected other keys: the sweep itself sets {key}")
        return self

    def applies(self, task: str, row: str, seed: int) -> bool:
        """Whether it is made for the run with this task, row and seed."""
        return (self.tasks is None or task in self.tasks) and (self.rows is None or row in self.rows)


class FurtherTestConfig(FurtherConfig):
    """A further evaluation of the checkpoint of each run."""

    title: str = ""
    """Description for tables; empty: the name of the test."""


class StudyProbeConfig(FurtherConfig):
    """A probe of the checkpoint of each run."""

    mode: ProbeMode
    """What coconut-probe does: the first word of its command line."""
    seeds: tuple[int, ...] | None = None
    """Seeds of the runs to which it applies; null: all."""

    def applies(self, task: str, row: str, seed: int) -> bool:
        """Whether it is made for the run with this task, row and seed."""
        return super().applies(task, row, seed) and (self.seeds is None or seed in self.seeds)
