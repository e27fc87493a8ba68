"""Checkpoints of a run: which are written, which are kept, and what is in them."""

import json
import random
from typing import Any

import pytest
import torch
from making_saver import StillEngine, evaluation, make_saver, manifest_of, names, run_epochs, with_settings
from torch_engine import run_folder, tiny_experiment

from coconut_ds.files import is_complete, seal_of
from coconut_ds.model.card import ModelCard
from coconut_ds.model.checkpoint import load_folder
from coconut_ds.runs.folder import ENGINE, RESUME_STATE
from coconut_ds.runs.manifest import read_manifest
from coconut_ds.runs.resume_state import Position
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.metrics import MetricsLog
from coconut_ds.training.saver import Scores


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return tiny_experiment()


def expected_names(outcomes: list[tuple[int, float]], settings: dict[str, Any]) -> set[str]:
    """Written: those that are due, the last, and each best. Kept: the newest ones, and the newest best."""
    keeps_best = settings.get("keep_best", True) or settings.get("save_only_improve", False)
    keep_last = 1 if settings.get("save_only_improve") else settings.get("keep_last", 2)
    best = [
        epoch
        for epoch, outcome in enumerate(outcomes, start=1)
        if all(outcome > earlier for earlier in outcomes[: epoch - 1])
    ]
    written = [
        epoch
        for epoch in range(1, len(outcomes) + 1)
        if epoch % settings.get("save_every", 1) == 0 or epoch == len(outcomes) or (keeps_best and epoch in best)
    ]
    kept = set(written if keep_last is None else written[-keep_last:])
    return {f"checkpoint_{epoch}" for epoch in (kept | {best[-1]} if keeps_best else kept)}


@pytest.mark.parametrize(
    "settings",
    [
        {"keep_last": None, "keep_best": False},
        {"keep_last": 2, "keep_best": True},
        {"keep_last": 1, "keep_best": True, "save_every": 3},
        {"keep_last": 2, "keep_best": False, "save_every": 2},
        {"keep_last": 1, "keep_best": False},
        {"save_only_improve": True, "keep_last": 5, "keep_best": False, "save_every": 4},
    ],
    ids=str,
)
def test_the_newest_and_the_best_of_the_latest_stage_are_kept(tmp_path, experiment, settings):
    """Random runs, against the rule written plainly. Scores count within a stage, since earlier ones are easier."""
    chosen = with_settings(experiment, **settings)
    for case in range(2):
        rng = random.Random(f"{settings}/{case}")
        stages = sorted(rng.randrange(3) for _ in range(7))
        outcomes = [(stage, rng.choice([0.1, 0.2, 0.3, 0.4])) for stage in stages]
        folder = run_folder(tmp_path / str(case))
        manifest = manifest_of(folder)
        run_epochs(make_saver(chosen, folder, manifest), outcomes)
        assert names(folder) == expected_names(outcomes, settings), outcomes
        assert all(is_complete(path) for path in folder.checkpoints())
        found = read_manifest(folder.manifest)
        assert (found.last_checkpoint, found.resume_epoch, found.resume_step) == ("checkpoint_7", 7, 21)
        assert (found.stage, found.best_accuracy) == (outcomes[-1][0], max(outcomes)[1])
        first_best = f"checkpoint_{outcomes.index(max(outcomes)) + 1}"
        assert found.best_checkpoint in ((first_best,) if first_best in names(folder) else (None,))


@pytest.mark.parametrize(
    ("outcomes", "best"),
    [
        ([(0, 0.5), (0, 0.7), (0, 0.6)], "checkpoint_2"),
        ([(0, 0.9), (1, 0.1), (1, 0.0)], "checkpoint_2"),
        ([(0, 0.5), (0, 0.5), (0, 0.5)], "checkpoint_1"),
        ([(1, 0.2), (0, 1.0), (0, 1.0)], "checkpoint_1"),
        ([(0, 0.0), (0, 0.0), (1, 0.0)], "checkpoint_3"),
    ],
)
def test_the_best_is_the_first_of_highest_accuracy_in_the_latest_stage(tmp_path, experiment, outcomes, best):
    folder = run_folder(tmp_path)
    saver = make_saver(with_settings(experiment, keep_last=None), folder, manifest_of(folder))
    run_epochs(saver, outcomes)
    assert read_manifest(folder.manifest).best_checkpoint == best
    scores = json.loads((folder.checkpoint(3) / ENGINE / RESUME_STATE).read_text())["scores"]
    assert (scores["best_checkpoint"], scores["last_accuracy"]) == (best, outcomes[-1][1])
    assert (scores["best_stage"], scores["best_accuracy"]) == outcomes[int(best[-1]) - 1]
    # A launch that continues with these scores goes on comparing with them.
    again = make_saver(with_settings(experiment, keep_last=1), folder, manifest_of(folder), scores=Scores(**scores))
    again.save(StillEngine(experiment), Position(epoch=4), outcomes[-1][0])
    assert names(folder) == {best, "checkpoint_4"}


def test_a_checkpoint_holds_the_model_its_card_and_where_the_run_is(tmp_path, experiment):
    """At the end of an epoch and within the next one, whose accuracy is not known yet."""
    folder, model = run_folder(tmp_path), experiment.backbone.model
    with MetricsLog(folder.metrics) as metrics:
        metrics.log({"global_step": 1, "train/loss": 1.0})
        size = folder.metrics.stat().st_size
        saver = make_saver(with_settings(experiment, keep_last=None), folder, metrics=metrics)
        position = Position(epoch=2, global_step=6, previous_stage=1, stage_switches=[1])
        assert not saver.is_saved(position)
        saver.after_epoch(StillEngine(experiment), position, 1, evaluation(0.25), last=False)
        assert saver.is_saved(position)
        within = Position(epoch=2, batch=1, global_step=7, previous_stage=1, stage_switches=[1], loss_sum=0.5)
        assert not saver.is_saved(within)
        saver.save(StillEngine(experiment), within, 2)
        assert saver.seconds > 0
    assert names(folder) == {"checkpoint_2", "checkpoint_2_1"}
    for path, place, stage, accuracy in (
        (folder.checkpoint(2), position, 1, 0.25),
        (folder.checkpoint(2, 1), within, 2, None),
    ):
        state = json.loads((path / ENGINE / RESUME_STATE).read_text())
        assert Position(**state["position"]) == place
        assert (state["metrics_bytes"], state["world_size"]) == (size, 1)
        card = ModelCard.read(path)
        assert (card.method, card.stage, card.num_thoughts) == ("coconut", stage, stage)
        known = {key: card.provenance[key] for key in ("epoch", "batch", "global_step", "validation_accuracy")}
        expected = {"epoch": 2, "batch": place.batch, "global_step": place.global_step, "validation_accuracy": accuracy}
        assert known == expected
        assert (seal_of(path)["epoch"], seal_of(path)["signature"]) == (2, "signature")
        loaded = load_folder(path).model.state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_a_few_predictions_of_each_epoch_are_written(tmp_path, experiment):
    folder = run_folder(tmp_path)
    run_epochs(make_saver(with_settings(experiment, save_every=9), folder), [(0, 0.3), (0, 0.1)])
    for epoch in (1, 2):
        samples = json.loads((folder.path / "samples" / f"epoch_{epoch}.json").read_text())
        assert [one["question"] for one in samples] == ["q0", "q1", "q2", "q3", "q4"]


def test_a_checkpoint_of_the_same_position_replaces_the_old_one(tmp_path, experiment):
    folder, position = run_folder(tmp_path), Position(epoch=1)
    saver = make_saver(experiment, folder)
    saver.save(StillEngine(experiment), position, 0)
    saver.save(StillEngine(experiment), position, 1)
    assert names(folder) == {"checkpoint_1"}
    assert ModelCard.read(folder.checkpoint(1)).stage == 1
    assert is_complete(folder.checkpoint(1))


def test_a_damaged_checkpoint_is_left_for_people_and_does_not_count(tmp_path, experiment):
    """Two are kept: a damaged one in between neither goes nor takes the place of a good one."""
    folder = run_folder(tmp_path)
    saver = make_saver(with_settings(experiment, keep_last=2, keep_best=False), folder)
    for epoch in (1, 2):
        saver.save(StillEngine(experiment), Position(epoch=epoch), 0)
    (folder.checkpoint(2) / "model.safetensors").write_bytes(b"cut")
    saver.save(StillEngine(experiment), Position(epoch=3), 0)
    assert names(folder) == {"checkpoint_1", "checkpoint_2", "checkpoint_3"}
    saver.save(StillEngine(experiment), Position(epoch=4), 0)
    assert names(folder) == {"checkpoint_2", "checkpoint_3", "checkpoint_4"}


def test_a_run_that_went_back_does_not_count_the_checkpoints_ahead_of_it(tmp_path, experiment):
    """A newer checkpoint was damaged, so the run continued from an older one: it may not push out its own."""
    folder = run_folder(tmp_path)
    saver = make_saver(with_settings(experiment, keep_last=1, keep_best=False), folder)
    saver.save(StillEngine(experiment), Position(epoch=5), 0)
    saver.save(StillEngine(experiment), Position(epoch=2), 0)
    assert names(folder) == {"checkpoint_2", "checkpoint_5"}
    saver.save(StillEngine(experiment), Position(epoch=3), 0)
    assert names(folder) == {"checkpoint_3", "checkpoint_5"}
