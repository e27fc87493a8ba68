"""One run of a sweep: what makes it, its folder and its identity."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.results import ResultFolder, free_or_own
from coconut_ds.settings.sweep import SweepConfig
from coconut_ds.studies.harness import study_identity
from coconut_ds.studies.inputs import file_contents

RESULT = "result.json"
"""The result of a finished run, in its folder."""


@dataclass(frozen=True)
class Shown:
    """What the table says about a run besides its results."""

    title: str = ""
    """Of its task."""
    chance: float | None = None
    paper: str | None = None
    number: int = 0
    """Orders the rows of the table, and its tasks."""


@dataclass(frozen=True)
class FurtherTest:
    """A further evaluation of a run's checkpoint."""

    name: str
    title: str
    overrides: tuple[str, ...]
    """Overrides of the evaluation, on top of those of the main one."""


@dataclass(frozen=True)
class Probe:
    """A probe of a run's checkpoint."""

    name: str
    mode: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One training run of a sweep, its evaluation, and what else is done with its checkpoint."""

    task: str
    """Name of the task; empty without a study."""
    row: tuple[tuple[str, str], ...]
    """What makes its row of the table: pairs of key and value; the key of a study's row is ``row``."""
    seed: int
    overrides: tuple[str, ...]
    """Configuration overrides of the run, without its output folder and, with ``after``, the checkpoint it starts
    from."""
    sweep: SweepConfig
    """How it is started and evaluated, and the folder of the sweep."""
    more: tuple[str, ...] = ()
    """Those of the overrides that the whole sweep has in common, from its command line."""
    after: "Job | None" = None
    """The run from whose best checkpoint it starts."""
    shown: Shown = Shown()
    tests: tuple[FurtherTest, ...] = ()
    probes: tuple[Probe, ...] = ()
    """Neither tests nor probes are part of its identity: a run that has been trained gets new ones at any time."""

    def __str__(self) -> str:
        return "/".join([*([self.task] if self.task else []), self.label, f"seed {self.seed}"])

    @property
    def label(self) -> str:
        """Its row, in one line."""
        return row_label(self.row) or "run"

    @property
    def out(self) -> Path:
        """Folder of the sweep."""
        return Path(self.sweep.out)

    def folder(self) -> Path:
        """Folder of the run and its result, unless it is in use."""
        # File systems allow 255 bytes; a signature may follow.
        name = re.sub(r"[^\w.,=+-]", "_", self.label)[:100]
        return self.out / self.task / name / f"seed_{self.seed}"

    def results(self) -> ResultFolder:
        """Folder of the run and its result: ``folder``, or one beside it if that is in use."""
        more: dict[str, Any] = {}
        if files := file_contents(self.overrides, self.sweep.config_dirs):
            more["files"] = files
        if self.after is not None:
            more["after"] = self.after.results().identity.signature
        identity = study_identity(overrides=list(self.overrides), **more)
        return free_or_own(ResultFolder(self.folder(), identity, (RESULT,)))


def row_label(row: Sequence[tuple[str, str]]) -> str:
    """A row in one line: a study's row by its name, other keys without their group."""
    return ",".join(value if key == "row" else f"{key.rsplit('.', 1)[-1]}={value}" for key, value in row)
