"""``coconut-sweep``: a set of training runs as a Hydra application, and the table of their results.

Hydra makes the runs of the command line (``method=coconut,pause run.seed=0,1,2``) and hands them to its launcher, one
after the other or in parallel, on this machine or on a cluster. Each run trains in processes of its own
(``studies.jobs``). The same command continues a sweep that was stopped or killed.
"""

import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from coconut_ds.cli.common import help_lines
from coconut_ds.errors import ConfigError
from coconut_ds.files import project_folder, shell_word
from coconut_ds.settings.compose import option_names
from coconut_ds.settings.help import schema_help
from coconut_ds.settings.schema import validated
from coconut_ds.settings.sweep import StudyConfig, SweepConfig, SweepKeys
from coconut_ds.settings.sweep_line import read_line
from coconut_ds.studies.checks import check_further
from coconut_ds.studies.jobs import described, finish
from coconut_ds.studies.study import job_of
from coconut_ds.studies.table import write_table

USAGE = """usage: coconut-sweep [-m] KEY=VALUE,VALUE … [study=NAME] [hydra/launcher=joblib]
       coconut-sweep --table FOLDER [baseline=ROW]

Each combination of values is a training run: coconut-sweep -m method=coconut,pause run.seed=0,1,2 data=modular_sum
A study is a file of config/study with rows, tasks and seeds; row=, task= and run.seed= choose some of them.
The same command continues a sweep, and finds finished runs. --table makes the table of a folder at any time.
All keys of coconut-train may be set (coconut-train --help-all). --hydra-help explains Hydra's own options.
"""


def run(argv: Sequence[str]) -> int:
    """Runs a command line. Returns the exit code: 1 if a run failed, 130 after an interruption.

    Raises:
        CoconutError: the command line is wrong, or the folder has no sweep.
    """
    if "--help" in argv or "-h" in argv:
        shared = "\n".join(["options of all programs:", *help_lines()])
        sys.stdout.write(f"{USAGE}\nStudies: {', '.join(_studies())}\n{schema_help(SweepConfig)}\n{shared}\n")
        return 0
    if "--table" in argv:
        return _show_table(*_table_options(argv))
    line = read_line(argv)
    if not line.asks_only:
        check_further(line.study, line.sweep)
    launch = [] if line.asks_only else [f"++sweep.launch='{uuid.uuid4().hex}'"]
    code = 0
    try:
        with _command_line([*launch, *line.words]):
            # The undecorated function, so that launchers can send it to other processes by its name.
            hydra.main(version_base="1.3", config_path=str(project_folder("config")), config_name="sweep")(job)()
    except SystemExit as end:
        # Hydra ends the program if a run has failed; the table says which, and why.
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues the sweep\n")
        return 130
    if line.asks_only:
        return code
    return max(code, _show_table(Path(line.sweep.out), None))


def job(config: DictConfig) -> float:
    """One run, which Hydra's launcher calls in the process of its choice.

    Returns what sweepers optimise: the accuracy on validation problems, from 0 to 1, since the test problems must not
    choose a run.

    Raises:
        CoconutError: the run failed.
    """
    hydra_config: Any = HydraConfig.get()
    words, number = list(hydra_config.overrides.task), hydra_config.job.get("num", 0)
    sweep = validated(SweepConfig, _plain(config.sweep))
    study = validated(StudyConfig, _plain(config.get("study") or {}))
    one = job_of(words, sweep, study, number)
    result = finish(one)
    sys.stdout.write(f"{described(one, result)}\n")
    sys.stdout.flush()
    return float(result.get("validation_accuracy") or 0.0)


def _plain(config: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _studies() -> list[str]:
    return option_names((), SweepKeys.model_fields)["study"]


def _table_options(argv: Sequence[str]) -> tuple[Path, str | None]:
    words = [word for word in argv if word != "--table"]
    named = [word.partition("=")[2] for word in words if word.startswith(("baseline=", "sweep.baseline="))]
    folders = [word for word in words if "baseline=" not in word]
    if len(folders) != 1 or folders[0].startswith("-") or len(named) > 1:
        raise ConfigError("--table: expected one folder: coconut-sweep --table FOLDER [baseline=ROW]")
    return Path(folders[0]), named[0] if named else None


def _show_table(folder: Path, baseline: str | None) -> int:
    """Writes and prints the table of a folder. Returns 1 if a run of it failed."""
    table = write_table(folder, baseline)
    files = ", ".join(shell_word(path) for path in table.files)
    sys.stdout.write(f"\n{table.markdown}\n{files}\n")
    return 1 if table.has_failures else 0


@contextmanager
def _command_line(words: Sequence[str]) -> Iterator[None]:
    """Hydra reads the command line of the process. Meanwhile SIGTERM ends the sweep as Ctrl-C does."""
    given, handler = sys.argv, signal.signal(signal.SIGTERM, _interrupt)
    sys.argv = [sys.argv[0], *words]
    try:
        yield
    finally:
        sys.argv = given
        signal.signal(signal.SIGTERM, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
