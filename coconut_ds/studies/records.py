"""What is on the disk of a sweep: the record of each run and its result, as the rows of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coconut_ds.errors import ConfigError
from coconut_ds.strict_json import JsonError, read_json
from coconut_ds.studies.further import PROBES, TESTS, finished_further, lacks_further
from coconut_ds.studies.further_tests import ACCURACY, BY_THOUGHTS, folder_of_test
from coconut_ds.studies.job import RESULT, row_label
from coconut_ds.studies.jobs import RECORDS, stored_result
from coconut_ds.studies.scoring import EVALUATION

FINISHED = "finished"


@dataclass(frozen=True)
class Entry:
    """One run."""

    record: Mapping[str, Any]
    folder: Path
    result: Mapping[str, Any] | None
    """None: the run is not finished."""
    evaluation: str = EVALUATION
    """Name of the folder with the predictions that ``accuracy`` counts."""

    @property
    def status(self) -> str:
        """``finished``, ``failed``, ``stopped`` or ``started``. A test or a probe that is missing counts too."""
        is_whole = self.result is not None and not lacks_further(self.record, self.result)
        return FINISHED if is_whole else str(self.record["status"])

    @property
    def accuracy(self) -> float | None:
        """Accuracy on test problems, from 0 to 1; None if the run is not finished."""
        return None if self.result is None else float(self.result["accuracy"])

    @property
    def tests(self) -> dict[str, dict[str, Any]]:
        """The results of its finished tests, by name."""
        return finished_further(self.record, self.result or {}, TESTS)

    @property
    def probes(self) -> dict[str, Path]:
        """The folders of its finished probes, by name."""
        found = finished_further(self.record, self.result or {}, PROBES)
        return {name: self.folder / one["folder"] for name, one in found.items()}

    def on_test(self, name: str) -> "Entry":
        """The same run with the accuracy of a further test in place of that of the main one; unfinished without it."""
        accuracy = self.tests.get(name, {}).get(ACCURACY)
        result = None if accuracy is None else {**(self.result or {}), "accuracy": accuracy}
        return replace(self, result=result, evaluation=folder_of_test(name))

    def by_thoughts(self, name: str) -> dict[int, float]:
        """The accuracies of a further test by number of thoughts or pause tokens; empty without them."""
        return {int(number): one for number, one in self.tests.get(name, {}).get(BY_THOUGHTS, {}).items()}


@dataclass(frozen=True)
class Row:
    """The runs that differ in their seed only."""

    task: str
    name: str
    pairs: tuple[tuple[str, str], ...]
    """What makes the row: keys and values, those that sweeps in this folder have set differently included."""
    shown: Mapping[str, Any]
    """The latest record of its runs: ``title``, ``chance``, ``paper`` and ``baseline``."""
    by_seed: dict[int, Entry] = field(default_factory=dict)

    @property
    def done(self) -> dict[int, Entry]:
        """The finished runs by seed."""
        return {seed: self.by_seed[seed] for seed in sorted(self.by_seed) if self.by_seed[seed].result is not None}

    @property
    def tests(self) -> dict[str, str]:
        """The names of the further tests that its runs were asked for, with their titles."""
        asked = [entry.record.get(TESTS, {}) for _, entry in sorted(self.by_seed.items())]
        return {name: str(one["title"]) for tests in asked for name, one in tests.items()}

    def on_test(self, name: str) -> "Row":
        """The same runs with the accuracies of a further test in place of those of the main one."""
        return replace(self, by_seed={seed: entry.on_test(name) for seed, entry in self.by_seed.items()})

    def __str__(self) -> str:
        return f"{self.task}/{self.name}" if self.task else self.name


def read_rows(folder: Path) -> list[Row]:
    """The rows of all sweeps in a folder, in the order of their study or command line.

    If a row has several runs of a seed, the one that was asked for last counts.

    Raises:
        ConfigError: no sweep has run in this folder.
    """
    entries = sorted(_entries(folder), key=lambda entry: entry.record["time"])
    if not entries:
        raise ConfigError(f"{folder}: found no runs of coconut-sweep, expected its folder out=; see {folder / RECORDS}")
    common = set.intersection(*(set(entry.record["more"]) for entry in entries))
    rows: dict[tuple[Any, ...], Row] = {}
    places: dict[tuple[Any, ...], tuple[int, float]] = {}
    for entry in entries:
        record = entry.record
        own = [tuple(word.split("=", 1)) for word in record["more"] if word not in common]
        pairs = tuple((str(key), str(value)) for key, value in [*record["row"], *own])
        key = (record["task"], pairs)
        row = rows.get(key) or Row(record["task"], row_label(pairs) or "run", pairs, record)
        row.by_seed[record["seed"]] = entry
        rows[key] = replace(row, shown=record)
        place = (record["number"], record["time"])
        places[key] = min(places.get(key, place), place)
    return [rows[key] for key in sorted(rows, key=places.__getitem__)]


def baseline_of(row: Row, rows: Sequence[Row], baseline: str | None) -> Row | None:
    """The row of the same task that differs from this one in the values of the baseline alone; None if there is none.

    Args:
        row: the row to compare.
        rows: all rows.
        baseline: names of rows or values of what varies, with or without their keys, separated by commas.
    """
    if not baseline:
        return None
    wanted = dict(row.pairs)
    for part in baseline.split(","):
        key, equals, value = part.rpartition("=")
        matching = [
            known
            for known in dict(row.pairs)
            if (equals and known.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1])
            or (not equals and any(dict(other.pairs).get(known) == value for other in rows))
        ]
        if not matching:
            return None
        wanted[matching[0]] = value
    found = [other for other in rows if other.task == row.task and dict(other.pairs) == wanted]
    return found[0] if found and found[0] is not row else None


def _entries(folder: Path) -> list[Entry]:
    found = []
    for path in sorted((folder / RECORDS).glob("*.json")):
        try:
            record = read_json(path)
        except (OSError, JsonError):
            # A crash of the machine may have damaged it; the next launch of its sweep writes it again.
            continue
        place = folder / record["folder"]
        found.append(Entry(record, place, stored_result(place / RESULT, record["overrides"])))
    return found
