"""Which attempt of a run a launch continues."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from kill_matrix import RUN

from coconut_ds.errors import CheckpointError
from coconut_ds.runs.attempts import choose_start
from coconut_ds.runs.manifest import RunManifest
from coconut_ds.runs.resume_state import Position, ResumeState, Scores
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
        ([(A, "completed")], "auto", 2, A),
        ([(A, "completed")], "auto", 3, A),
        ([(A, "completed")], "auto", 1, A),
        ([(A, "completed")], "force", 2, A),
        ([(A, "completed", 1, "solved")], "auto", 2, A),
        ([(A, "completed", 1, "solved")], "auto", 9, A),
        ([(A, "completed"), (B, "completed")], "auto", 2, B),
        ([(A, "completed")], "never", 2, None),
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
    assert start.is_complete == (
        mode == "auto" and {rest[0] for _, *rest in there} == {"completed"} and num_epochs != 3
    )


STATE = ResumeState(Position(epoch=1, batch=2, stage_switches=[1], loss_sum=0.1), Scores(0, 0.5, "checkpoint_1"), 7, 2)


def test_a_resume_state_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "resume_state.json"
    STATE.write(path)
    assert ResumeState.read(path) == STATE


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda values: values.pop("world_size"), "world_size: Field required"),
        (lambda values: values.update(world_size="2"), "world_size: Input should be a valid integer"),
        (lambda values: values["position"].pop("batch"), "position.batch: Field required"),
        (lambda values: values["position"].update(loss_sum=None), "position.loss_sum: Input should be a valid number"),
        (lambda values: values["scores"].update(worst=0.1), "scores.worst: Unexpected keyword argument"),
    ],
)
def test_a_resume_state_of_another_shape_names_file_and_field(tmp_path, spoil, fault):
    path, values = tmp_path / "resume_state.json", asdict(STATE)
    spoil(values)
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as raised:
        ResumeState.read(path)
    assert f"{path}: " in str(raised.value)
    assert fault in str(raised.value)


@pytest.mark.parametrize("text", ["", '{"position"', "[]", None])
def test_a_resume_state_that_is_no_object_or_not_there_names_the_file(tmp_path, text):
    path = tmp_path / "resume_state.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CheckpointError, match=r"resume_state\.json: "):
        ResumeState.read(path)
