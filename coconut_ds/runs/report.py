"""Formats what is known of attempts, as text (tables, sizes, ages, colours) and as plain values for JSON."""

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from coconut_ds.files import shell_word
from coconut_ds.runs.catalogue import Attempt, Checkpoint, last_evaluation, last_update, next_launch
from coconut_ds.runs.identity import ABSENT, IngredientDifference

COLOURS = {
    "running": 32,
    "completed": 36,
    "stale": 33,
    "interrupted": 33,
    "failed": 31,
    "unknown": 35,
    "complete": 32,
    "damaged": 31,
}
NO_VALUE = "–"
COLUMNS = ("name", "signature", "attempt", "status", "stage", "epoch", "best", "age", "size")


def coloured(word: str, shown: str | None = None) -> str:
    """A word in its colour on a terminal, unless ``NO_COLOR`` is set. ``shown``: the word padded with spaces."""
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    text = word if shown is None else shown
    return text if plain or word not in COLOURS else f"\033[{COLOURS[word]}m{text}\033[0m"


def size(count: int) -> str:
    """A number of bytes in binary units: ``1.2 GiB``."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    # 1023.95 would be rounded to 1024.0 of the smaller unit.
    while value >= 1023.95 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def age(seconds: float) -> str:
    """A duration in the largest unit that fits: ``3 h``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def aligned_table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A text table with aligned columns; the columns named in ``right`` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for number, row in enumerate([head, *rows]):
        cells = [
            f"{cell:>{width}}" if name in right else f"{cell:<{width}}"
            for name, cell, width in zip(head, row, widths, strict=True)
        ]
        # Remove trailing spaces before adding colour codes.
        cells[-1] = cells[-1].rstrip()
        if number:
            cells = [coloured(cell.strip(), cell) for cell in cells]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def attempts_text(attempts: Sequence[Attempt]) -> str:
    """The table that ``coconut-runs list`` prints."""
    rows = []
    for one in attempts:
        total = one.manifest.num_epochs if one.manifest is not None else None
        rows.append(
            (
                one.name,
                one.folder.signature,
                one.id,
                one.status,
                _shown(one.stage),
                _shown(one.epoch) + (f"/{total}" if total is not None else ""),
                _percent(one.best_accuracy),
                age(time.time() - one.updated),
                size(one.bytes),
            )
        )
    return aligned_table(COLUMNS, rows, right=("stage", "epoch", "best", "age", "size"))


def attempt_values(attempt: Attempt) -> dict[str, Any]:
    """The row of an attempt in that table, for JSON."""
    return {
        "name": attempt.name,
        "signature": attempt.folder.signature,
        "attempt": attempt.id,
        "path": str(attempt.path),
        "status": attempt.status,
        "reason": attempt.manifest.reason if attempt.manifest is not None else None,
        "stage": attempt.stage,
        "epoch": attempt.epoch,
        "num_epochs": attempt.manifest.num_epochs if attempt.manifest is not None else None,
        "best_accuracy": attempt.best_accuracy,
        "best_checkpoint": attempt.best.path.name if attempt.best is not None else None,
        "age_s": round(time.time() - attempt.updated),
        "bytes": attempt.bytes,
    }


def show_values(attempt: Attempt) -> dict[str, Any]:
    """Everything that is known of an attempt, for JSON."""
    return {
        **attempt_values(attempt),
        "manifest": attempt.manifest.model_dump(mode="json") if attempt.manifest is not None else None,
        "checkpoints": [_checkpoint_values(attempt, checkpoint) for checkpoint in attempt.checkpoints],
        "last_update": last_update(attempt),
        "last_evaluation": last_evaluation(attempt),
        "next": next_launch(attempt),
    }


def show_text(attempt: Attempt) -> str:
    """The text that ``coconut-runs show`` prints."""
    known = attempt.manifest is not None and attempt.manifest.reason not in (None, attempt.status)
    reason = f" ({attempt.manifest.reason})" if attempt.manifest is not None and known else ""
    parts = [
        f"{shell_word(attempt.path)}\n{coloured(attempt.status)}{reason}, {size(attempt.bytes)}, "
        f"{age(time.time() - attempt.updated)} ago\n",
        _manifest_text(attempt),
        _launches_text(attempt),
        _checkpoints_text(attempt),
    ]
    record = [("update", last_update(attempt)), ("evaluation", last_evaluation(attempt))]
    lines = [f"  last {kind}: {_numbers(values)}\n" for kind, values in record if values is not None]
    parts.append(f"record\n{''.join(lines) or f'  {NO_VALUE}{chr(10)}'}")
    parts.append(f"next, with resume_mode=auto\n  {next_launch(attempt)}\n")
    return "\n".join(parts)


def difference_text(found: Sequence[IngredientDifference], left: str, right: str) -> str:
    """The table that ``coconut-runs diff`` prints."""
    if not found:
        return "no ingredient of the signatures differs\n"
    rows = [(one.key, _value(one.left), _value(one.right)) for one in found]
    return aligned_table(("key", left, right), rows)


def difference_values(found: Sequence[IngredientDifference]) -> list[dict[str, Any]]:
    """The same for JSON; a side that lacks the key is left out."""
    sides = [(one.key, {"left": one.left, "right": one.right}) for one in found]
    return [{"key": key, **{side: value for side, value in both.items() if value is not ABSENT}} for key, both in sides]


def finite(value: Any) -> Any:
    """``value`` with None in the place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _manifest_text(attempt: Attempt) -> str:
    if attempt.manifest is None:
        return "manifest\n  missing or malformed; what is known comes from the checkpoints\n"
    values = attempt.manifest.model_dump(mode="json", exclude={"launches", "command"}, exclude_none=True)
    values["command"] = shlex.join(attempt.manifest.command)
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
    width = max(map(len, flat))
    return "manifest\n" + "".join(f"  {key:<{width}}  {value}".rstrip() + "\n" for key, value in flat.items())


def _launches_text(attempt: Attempt) -> str:
    launches = attempt.manifest.launches if attempt.manifest is not None else []
    if not launches:
        return f"launches\n  {NO_VALUE}\n"
    rows = [
        (
            one.time,
            one.host,
            str(one.pid),
            str(one.world_size),
            one.batch,
            f"{one.from_checkpoint or 'the beginning'}{' (converted)' if one.converted else ''}",
            one.note or "",
        )
        for one in launches
    ]
    return "launches\n" + _indented(aligned_table(("time", "host", "pid", "ranks", "batch", "from", "note"), rows))


def _checkpoints_text(attempt: Attempt) -> str:
    if not attempt.checkpoints:
        return f"checkpoints\n  {NO_VALUE}\n"
    rows = []
    for one in attempt.checkpoints:
        values = _checkpoint_values(attempt, one)
        state = "damaged" if one.problems else "complete"
        note = "; ".join(["best"] * values["best"] + values["problems"])
        rows.append((one.path.name, state, _shown(one.stage), _percent(one.accuracy), size(one.bytes), note))
    head = ("name", "state", "stage", "accuracy", "size", "note")
    return "checkpoints\n" + _indented(aligned_table(head, rows, right=("stage", "accuracy", "size")))


def _checkpoint_values(attempt: Attempt, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.path.name,
        "complete": not checkpoint.problems,
        "problems": list(checkpoint.problems),
        "best": checkpoint == attempt.best,
        "stage": checkpoint.stage,
        "accuracy": checkpoint.accuracy,
        "bytes": checkpoint.bytes,
    }


def _numbers(values: dict[str, Any]) -> str:
    shown = {key: value for key, value in values.items() if key != "time" and not key.startswith("perf/")}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
    )


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def _shown(value: int | None) -> str:
    return NO_VALUE if value is None else str(value)


def _percent(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.1%}"


def _value(value: Any) -> str:
    if value is ABSENT:
        return NO_VALUE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
