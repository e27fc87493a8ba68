"""Which convention decides whether an answer to a problem of a file is right."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from coconut_ds.errors import CoconutError
from coconut_ds.files import project_folder
from coconut_ds.scoring import EXACT, SCORINGS, scoring_of
from coconut_ds.scoring.base import Scoring

log = logging.getLogger("serve")
_PATHS = ("train_path", "val_path", "test_path")


def convention_of(path: Path) -> Scoring:
    """The convention for a file of problems: that of its data set, else ``exact``.

    The data set of a file that a run has stored (``problems/test.json``) is that of the run's ``config.yaml``. Other
    files are recognised by their names, which are those in ``config/data``: ``svamp.json`` has the convention of
    ``data=svamp``.
    """
    settings = _settings_of_run(path) or next(_data_sets_with(path.name), {})
    name, answers = settings.get("scoring", EXACT.name), settings.get("answers", "text")
    if name not in SCORINGS:
        return EXACT
    try:
        return scoring_of(name, answers)
    except CoconutError as error:
        log.warning("%s: answers are compared exactly: %s", path, error)
        return EXACT


def _settings_of_run(path: Path) -> dict[str, Any]:
    """The group ``data`` of the configuration of the run that has stored a file of problems; empty if none has."""
    found = _read(path.parent.parent / "config.yaml").get("data") if path.parent.name == "problems" else None
    return found if isinstance(found, dict) else {}


def _data_sets_with(name: str) -> Iterator[dict[str, Any]]:
    """The options of ``config/data`` that read a file of this name."""
    for path in sorted((project_folder("config") / "data").glob("*.yaml")):
        settings = _read(path)
        if name in [Path(str(settings[key])).name for key in _PATHS if settings.get(key)]:
            yield settings


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
