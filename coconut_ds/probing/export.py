"""Writes results as JSON and CSV files."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from coconut_ds.evaluation.statistics import Mean
from coconut_ds.files import write_whole
from coconut_ds.probing.cases import Plain

Row = dict[str, Any]


def write_json(path: Path, value: Plain | Sequence[Plain] | Mapping[str, Any]) -> None:
    """Writes results as JSON. The file is written atomically."""
    write_whole(path, json.dumps(as_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as CSV. The columns are the keys of all rows, in the order in which they first occur."""
    kept = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list({key: None for row in kept for key in row}), lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    write_whole(path, text.getvalue())


def row_of(result: Any, **more: Any) -> Row:
    """Turns a result into a row of a table, with the columns ``more`` first.

    A mean becomes three columns (estimate and both ends of its interval). Fields with several values are left out.
    """
    row: Row = dict(more)
    for field in fields(result):
        value = getattr(result, field.name)
        if isinstance(value, Mean):
            row |= {field.name: value.estimate, f"{field.name}_low": value.low, f"{field.name}_high": value.high}
        elif not is_dataclass(value) and not isinstance(value, (list, tuple, dict)):
            row[field.name] = value
    return row


def as_plain(value: Any) -> Any:
    """Results, and lists and mappings of them, as values for JSON."""
    if isinstance(value, Plain):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {key: as_plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(one) for one in value]
    return value
