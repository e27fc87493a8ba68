"""Which attempt of a run a launch continues."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kill_matrix import RUN

from coconut_ds.runs.attempts import choose_start
from coconut_ds.runs.manifest import RunManifest
from coconut_ds.settings.compose import compose_config


def attempt_of(folder: Path, name: str, status: str | None, resume_epoch: int = 2, reason: str | None = None) -> None:
    """Writes an attempt without checkpoints."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "config.yaml").touch()
    if status is None:
        return
    values: dict[str, Any] = dict.fromkeys(("host", "started", "updated"), "") | {"code": {}, "versions": {}}
    values |= {"name": "demo", "signature": folder.name, "attempt": name, "num_epochs": 2, "pid": 1, "world_size": 1}
    manifest = RunManifest(status=status, reason=reason, resume_epoch=resume_epoch, **values)
    (path / "run_manifest.yaml").write_text(yaml.safe_dump(manifest.model_dump(mode="json")))


A, B, C = ("20260101-000000-0000", "20260102-000000-0000", "20260103-000000-0000")


@pytest.mark.parametrize(
    ("there", "mode", "num_epochs", "chosen"),
    [
        ([], "auto", 2, None),
        ([], "force", 2, None),
        ([(A, "completed")], "auto", 2, None),
        ([(A, "completed")], "auto", 3, A),
        ([(A, "completed")], "auto", 1, None),
        ([(A, "completed")], "force", 2, A),
        ([(A, "completed", 1, "solved")], "auto", 2, None),
        ([(A, "completed", 1, "solved")], "auto", 9, None),
        ([(A, "failed"), (B, "running"), (C, "completed")], "auto", 2, B),
        ([(A, "failed"), (B, "running"), (C, "completed")], "force", 2, C),
        ([(A, "failed"), (B, "running"), (C, "completed")], "auto", 3, C),
        ([(A, "failed"), (B, "running")], "never", 2, None),
        ([(A, None), (B, "completed")], "auto", 2, A),
    ],
)
def test_which_attempt_a_mode_means(tmp_path, there, mode, num_epochs, chosen):
    folder = tmp_path / "demo" / "0123456789ab"
    for name, *rest in there:
        attempt_of(folder, name, *rest)
    config = compose_config([*RUN, f"num_epochs={num_epochs}", f"resume_mode={mode}", f"save_path={tmp_path}"])
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": "demo"})})
    start = choose_start(config, folder.name, {}, print)
    assert start.is_new == (chosen is None)
    assert chosen in (None, start.path.name)
    assert start.path.parent == folder
    assert start.is_new != start.path.exists()
