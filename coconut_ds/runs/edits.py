"""Text files of a checkpoint that were edited after it was written: what changed, and accepting the changes.

A checkpoint's manifest holds the hash of each of its files, so that damage is found. An edit of ``coconut.json`` or of
``config.json`` looks like damage too, until ``coconut-runs accept`` writes its new hash into the manifest. Weights and
the files in ``engine/`` cannot be accepted, because a change of these is never an edit.
"""

import difflib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coconut_ds.errors import CheckpointError
from coconut_ds.files import SEAL, damage, fingerprint, seal_of, shell_word, text_of, write_whole
from coconut_ds.runs.fencing import Fence
from coconut_ds.runs.identity import FILE as INGREDIENTS
from coconut_ds.runs.lock import RunLock
from coconut_ds.strict_json import parse_json

Write = Callable[[Path, str], object]
EDITABLE = (".json", ".jinja", ".txt", ".md")
"""Suffixes of the files whose changes can be accepted."""


@dataclass(frozen=True)
class Edit:
    """A file that is not as it was when the checkpoint was written."""

    path: Path
    before: str | None
    """Its text at that time; None if it was not recorded, because the file is long or the checkpoint old."""
    after: str
    """Its text now."""

    def as_text(self) -> str:
        """The lines that changed; without a record of the former text, the whole new one."""
        if self.before is None:
            return f"{self.path}: its former text was not recorded; it now reads:\n{self.after.rstrip()}\n"
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), "when written", "now", n=1, lineterm=""
        )
        return "\n".join([f"{self.path}:", *lines]) + "\n"


def edits_of(folder: Path) -> list[Edit]:
    """The edited text files at the top of a checkpoint or model folder, in alphabetical order.

    Raises:
        CheckpointError: the folder has no manifest, or an edited file is not readable text or not valid JSON.
    """
    known, texts = _manifest(folder)
    found = []
    for name in sorted(known):
        path = folder / name
        if path.suffix in EDITABLE and path.parent == folder and path.is_file() and fingerprint(path) != known[name]:
            found.append(Edit(path, texts.get(name), _checked_text(path)))
    return found


@contextmanager
def changing(folder: Path) -> Iterator[Write]:
    """Yields the function by which a file of a checkpoint may be replaced.

    Meanwhile no launch can work on the run that the checkpoint belongs to; a copy elsewhere belongs to none.

    Raises:
        ConfigError: a launch works on the run.
        CheckpointError: the folder of the run cannot be written to.
    """
    run = folder.resolve().parent.parent
    if not (run / INGREDIENTS).is_file():
        yield write_whole
        return
    with RunLock(run, print) as lock:
        try:
            fence = Fence(run, lock)
        except OSError as error:
            raise CheckpointError(f"{run}: cannot be written to ({error}); nothing was accepted") from error
        try:
            yield fence.write
        finally:
            fence.close()


def accept(folder: Path, edits: list[Edit], write: Write = write_whole) -> None:
    """Writes the new hashes of edited files into the manifest, which also records that they were accepted.

    Args:
        folder: the checkpoint.
        edits: see ``edits_of``.
        write: replaces a file atomically, see ``changing``.

    Raises:
        CheckpointError: the manifest cannot be written.
    """
    values = seal_of(folder) or {}
    for edit in edits:
        name = edit.path.name
        record = {
            "file": name,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "before": values["files"][name],
        }
        values.setdefault("accepted", []).append(record)
        values["files"][name] = fingerprint(edit.path)
        if (text := text_of(edit.path)) is not None:
            values.setdefault("texts", {})[name] = text
    try:
        write(folder / SEAL, json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(f"{folder / SEAL}: cannot be written ({error}); nothing was accepted") from error


def advice_on_damage(folder: Path) -> str:
    """What to do about a damaged checkpoint: use another one or, if only text files differ, accept their changes."""
    another = "use another checkpoint of the run"
    accepting = how_to_accept(folder)
    return f"{accepting}; otherwise {another}" if accepting else another


def how_to_accept(folder: Path) -> str | None:
    """How to accept the edits of a checkpoint; None if there are none, or other files have changed too."""
    try:
        edited = [edit.path.name for edit in edits_of(folder)]
    except CheckpointError:
        return None
    if not edited or {fault.split(" ")[0] for fault in damage(folder)} - set(edited):
        return None
    return (
        f"if you edited {' and '.join(edited)} yourself, accept the changes with: coconut-runs accept "
        f"{shell_word(folder)}"
    )


def _manifest(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """For each file of a sealed folder its size and hash, and the recorded texts."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the folder of a checkpoint")
    values = seal_of(folder)
    if values is None:
        raise CheckpointError(
            f"{folder}: {SEAL} is missing or broken; a folder without one is used as it is, and its changes need not "
            "be accepted"
        )
    texts = values.get("texts")
    return values["files"], texts if isinstance(texts, dict) else {}


def _checked_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            parse_json(text, finite=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be accepted: it is not valid JSON or not text ({error})") from error
    return text
