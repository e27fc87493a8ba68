"""Trackers receive the numbers of ``metrics.jsonl``, also across a resume, and cost a run nothing if they fail."""

import json
import struct
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launching
import pytest
import yaml
from accelerate import tracking
from launching import TRAIN, environment
from making_config import config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coconut_ds.errors import CheckpointError, ConfigError
from coconut_ds.runs.folder import RunFolder
from coconut_ds.train import main
from coconut_ds.training import run_record
from coconut_ds.training.metrics import MetricsLog, read_metrics
from coconut_ds.training.trackers import Tracked, open_tracker, refuse_missing_trackers
from coconut_ds.training.wandb_mirror import wandb_mode

TINY = (
    *("run=demo", "data=modular_sum", "num_terms=3", "size.train=40", "size.valid=10", "size.test=12"),
    *("model=gpt2_scratch_tiny", "tokenizer=dataset", "model.model_config_overrides.n_embd=16", "training=demo"),
    *("advance=epochs", "max_latent_stage=2", "epochs_per_stage=1", "num_epochs=2"),
    *("global_batch_size=16", "batch_size_training=8"),
)


def recorded(path: Path, rounded: bool) -> dict[str, list[tuple[int, float]]]:
    """Each series of ``metrics.jsonl``: updates completed and value. ``rounded``: to single precision."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(path):
        for key, value in line.items():
            if isinstance(value, (int, float)) and key != "time":
                kept = struct.unpack("f", struct.pack("f", value))[0] if rounded else float(value)
                found.setdefault(key, []).append((line["global_step"], kept))
    return found


def in_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of the files in a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {key: [(one.step, one.value) for one in events.Scalars(key)] for key in events.Tags()["scalars"]}


def tracked(name: str, folder: Path, run_id: str | None = None, updates: int = 0) -> Tracked:
    return Tracked(config({"run.trackers": [name], "run.save_path": str(folder)}), folder, run_id, updates)


@pytest.mark.slow
def test_tensorboard_shows_the_record_of_a_run_and_of_its_continuation(tmp_path):
    for epochs in (1, 2):
        words = [TRAIN, *TINY, f"num_epochs={epochs}", "run.trackers=[tensorboard]"]
        done = launching.run(words, environment(HOME=str(tmp_path)), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stdout + done.stderr
    (found,) = tmp_path.glob("outputs/*/*/*/config.yaml")
    run = found.parent
    shown = in_tensorboard(run / "tensorboard")
    assert shown == recorded(run / "metrics.jsonl", rounded=True)
    assert len(shown["train/loss"]) == 6
    assert list(yaml.safe_load((run / "run_manifest.yaml").read_text())["tracked_runs"]) == ["tensorboard"]


def log_and_resume(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[dict[str, Any]]]:
    """A launch that logs six updates, and one that resumes after the fourth.

    Returns the id of the tracked run, and the lines of both launches as they were logged.
    """
    values = [{"epoch": 1, "global_step": step, "train/loss": 1 / step, "list": [1]} for step in range(1, 7)]
    other = [{**line, "train/loss": line["train/loss"] + 0.5} for line in values[4:]]
    run_id, ids = None, set()
    for lines, updates in ((values, 0), (other, 4)):
        mirror, run_id = open_tracker(name, tracked(name, folder, run_id, updates))
        ids.add(run_id)
        with MetricsLog(folder / f"{updates}.jsonl", [mirror], pytest.fail) as log:
            for line in lines:
                log.log(line)
    assert len(ids) == 1
    return ids.pop(), [*values[:4], *other]


def test_tensorboard_hides_the_updates_that_a_resume_repeats(tmp_path, monkeypatch):
    _, lines = log_and_resume("tensorboard", tmp_path, monkeypatch)
    shown = in_tensorboard(tmp_path / "tensorboard")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert shown == recorded(tmp_path / "metrics.jsonl", rounded=True)


def test_mlflow_has_the_record_and_the_last_value_of_a_repeated_update(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    run_id, lines = log_and_resume("mlflow", tmp_path, monkeypatch)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["run.seed"]) == ("FINISHED", "0")
    last = {one.step: one.value for one in client.get_metric_history(run_id, "train/loss")}
    assert last == {line["global_step"]: line["train/loss"] for line in lines}


class Failing(tracking.GeneralTracker):
    """A tracker that fails when it starts, or at its third line."""

    name = "aim"
    requires_logging_directory = False
    at_start = False

    def __init__(self, *given: Any, **named: Any) -> None:
        self.lines = 0

    @property
    def tracker(self) -> Any:
        return type("Run", (), {"hash": "abc"})

    closed = 0

    def finish(self) -> None:
        Failing.closed += 1

    def start(self) -> None:
        if self.at_start:
            raise OSError("no server")

    def log(self, values: dict[str, Any], step: int | None = None, **named: Any) -> None:
        self.lines += 1
        if self.lines == 3:
            raise ConnectionError("gone")


def test_a_tracker_that_fails_later_warns_once_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", Failing)
    said: list[str] = []
    mirrors = [open_tracker(name, tracked(name, tmp_path)) for name in ("aim", "tensorboard")]
    assert mirrors[0][1] == "abc", "the id that the tracker has chosen"
    with MetricsLog(tmp_path / "metrics.jsonl", [mirror for mirror, _ in mirrors], said.append) as log:
        for step in range(1, 7):
            log.log({"global_step": step, "train/loss": 0.5})
    assert said == ["warning: aim failed (ConnectionError: gone); metrics.jsonl has all metrics"]
    assert in_tensorboard(tmp_path / "tensorboard") == recorded(tmp_path / "metrics.jsonl", rounded=True)


def test_a_tracker_that_does_not_start_or_is_not_installed_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", Failing)
    monkeypatch.setattr(Failing, "at_start", True)
    with pytest.raises(ConfigError, match=r"run.trackers: aim did not start \(OSError: no server\)"):
        open_tracker("aim", tracked("aim", tmp_path))
    with pytest.raises(ConfigError, match="the package dvclive is missing; install it with: pip install dvclive"):
        refuse_missing_trackers(tracked("dvclive", tmp_path).config)
    assert main([*TINY, "run.trackers=[clearml]", f"run.save_path={tmp_path / 'out'}"]) == 2
    assert "the package clearml is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("trackers", "wandb", "expected"),
    [(["nothing"], "auto", "Input should be 'aim'"), (["wandb"], "disabled", "run.wandb=disabled")],
)
def test_trackers_that_contradict_are_refused(trackers, wandb, expected):
    with pytest.raises(ConfigError, match=expected):
        config({"run.trackers": trackers, "run.wandb": wandb})


def test_a_tracker_is_closed_if_a_later_step_of_the_launch_fails(tmp_path, monkeypatch):
    def fail(*given: Any) -> None:
        raise CheckpointError("the record is shorter")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "aim", Failing)
    monkeypatch.setattr(Failing, "closed", 0)
    monkeypatch.setattr(run_record, "begin_metrics", fail)
    monkeypatch.setattr(run_record, "_manifest", lambda *given: SimpleNamespace(wandb_run_id=None, tracked_runs={}))
    experiment: Any = SimpleNamespace(config=config({"run.trackers": ["aim"], "run.wandb": "disabled"}))
    start = SimpleNamespace(folder=RunFolder(tmp_path), path=tmp_path, resume_state=None, is_new=False)
    claim: Any = SimpleNamespace(start=start, fence=SimpleNamespace(make_folder=lambda path: None))
    with ExitStack() as stack, pytest.raises(CheckpointError, match="shorter"):
        run_record._begin(experiment, claim, print, stack)
    assert Failing.closed == 1


def test_wandb_among_the_trackers_must_not_be_disabled(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(config({})) == ("disabled", None)
    assert wandb_mode(config({"run.trackers": ["wandb"], "run.wandb": "offline"})) == ("offline", None)
    with pytest.raises(ConfigError, match="WANDB_MODE=disabled; unset it"):
        wandb_mode(config({"run.trackers": ["wandb"]}))
