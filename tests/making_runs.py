"""Made-up runs: attempts with checkpoints, manifests and locks, written without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coconut_ds.files import seal
from coconut_ds.runs.cli import main
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.identity import write_ingredients
from coconut_ds.runs.lock import FILE as LOCK
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.manifest import RunManifest, now, this_launch

RUN, OTHER = "aa11aa11aa11", "aa22bb22bb22"
FIRST, SECOND, THIRD = "20260101-000000-aaaa", "20260102-000000-bbbb", "20260103-000000-cccc"


def make_checkpoint(folder: RunFolder, epoch: int, stage: int, accuracy: float, batch: int = 0) -> Path:
    path = folder.checkpoint(epoch, batch)
    (path / ENGINE).mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    card = {"stage": stage, "provenance": {"validation_accuracy": None if batch else accuracy}}
    (path / "coconut.json").write_text(json.dumps(card))
    (path / ENGINE / RESUME_STATE).write_text("{}")
    seal(path, epoch=epoch)
    return path


def make_attempt(root: Path, signature: str, attempt: str, updated: str, **facts: Any) -> RunFolder:
    """Four checkpoints. The best is number 2: not the newest, and not the one with the highest accuracy, which is at an
    easier stage."""
    folder = RunFolder(root / "toy" / signature / attempt)
    folder.path.mkdir(parents=True)
    folder.config.write_text("{}\n")
    accuracies = {1: (0, 0.9), 2: (1, 0.6), 3: (1, 0.5), 4: (1, 0.4)}
    for epoch, (stage, accuracy) in accuracies.items():
        make_checkpoint(folder, epoch, stage, accuracy)
    values: dict[str, Any] = {
        "status": "completed",
        "stage": 1,
        "resume_epoch": 4,
        "num_epochs": 4,
        "last_checkpoint": "checkpoint_4",
        "best_checkpoint": "checkpoint_2",
        "best_accuracy": 0.6,
        "launches": [this_launch(2, "8 × 2 × 2")],
        **facts,
    }
    fixed = {"name": "toy", "signature": signature, "attempt": attempt, "host": "there", "pid": 1, "world_size": 2}
    manifest = RunManifest(**fixed, **values, code={"commit": "abc"}, versions={}, started=now(), updated=updated)
    manifest.write(folder.manifest)
    # ``write`` sets the current time; these runs were active in the past.
    folder.manifest.write_text(folder.manifest.read_text().replace(manifest.updated, updated))
    return folder


def hold(folder: RunFolder, **facts: Any) -> None:
    """A lock that a launch left behind, or that one on another machine holds."""
    with RunLock(folder.path.parent, print):
        text = json.loads((folder.path.parent / LOCK).read_text())
    (folder.path.parent / LOCK).write_text(json.dumps({**text, **facts}))


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir() if "checkpoint" in path.name)


def make_runs(root: Path) -> Path:
    """Three attempts at two runs; the attempt that began first was active last."""
    for number, (signature, attempt, lr) in enumerate([(RUN, SECOND, 1e-4), (OTHER, THIRD, 3e-5), (RUN, FIRST, 1e-4)]):
        make_attempt(root, signature, attempt, f"2026-01-0{number + 1}T00:00:00+00:00")
        write_ingredients(root / "toy" / signature, {"training.lr": lr, "data.kind": "file", "model.dropout": 0.1})
    return root


def calling(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that runs a ``coconut-runs`` command on ``root``; it returns the exit code, stdout and stderr."""

    def run(command: str, *words: str) -> tuple[int, str, str]:
        code = main([command, "--root", str(root), *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run
