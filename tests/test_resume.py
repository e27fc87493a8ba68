"""The same command line carries on: with the same bits, from the newest checkpoint that can be used, or not at all."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from launching import environment, starting
from resume_worker import DAMAGES, DIES_AT, KEPT, MANIFESTS, ROOMS, STOPS, ZEROS

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = environment(DS_ACCELERATOR="cpu")
ALL = list(range(1, 17))
"""The updates of the run, each once."""


class Outcomes(dict[str, Any]):
    """What the worker wrote down."""

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        assert "crashed" not in found, found["crashed"]
        return found


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """All scenarios: on two ranks, on one, on two again."""
    folder, found = tmp_path_factory.mktemp("resume"), Outcomes()
    for part in ("before", "alone", "after"):
        out, ranks = folder / f"{part}.json", 1 if part == "alone" else 2
        command = [
            *starting(ranks),
            str(ROOT / "tests" / "resume_worker.py"),
            str(out),
            str(folder),
            part,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=ENVIRONMENT)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        found.update(json.loads(out.read_text()))
    return found


def ended_as_if_undisturbed(outcome: dict[str, Any]) -> bool:
    """The end is the end of the run that was left alone, bit for bit, and nothing is left over."""
    assert outcome["error"] is None
    assert outcome["differences"] == []
    assert outcome["steps"] == ALL
    assert (outcome["damaged"], outcome["hidden"]) == ([], [])
    assert outcome["manifest"]["status"] == "completed"
    return True


# --- which attempt


@pytest.mark.slow
def test_more_epochs_continue_the_completed_attempt_and_equal_a_run_of_as_many(outcomes):
    grown = outcomes["grown"]
    first, ended = grown["first"], grown["ended"]
    assert (first["manifest"]["status"], first["manifest"]["num_epochs"]) == ("completed", 2)
    assert ended_as_if_undisturbed(ended)
    assert len(ended["attempts"]) == 1
    assert [launch["from_checkpoint"] for launch in ended["manifest"]["launches"]] == [None, "checkpoint_2"]
    assert (ended["manifest"]["num_epochs"], ended["manifest"]["resume_step"], ended["lost"]) == (4, 16, None)
    ours, alone = grown["summaries"]
    assert ours == alone


@pytest.mark.slow
def test_force_takes_the_newest_attempt_and_trains_nothing_twice_while_others_begin_anew(outcomes):
    grown = outcomes["grown"]
    forced = grown["forced"]
    assert forced["error"] is None
    assert forced["same_record"]
    assert forced["attempts"] == grown["ended"]["attempts"]
    assert (forced["manifest"]["status"], len(forced["manifest"]["launches"])) == ("completed", 3)
    numbers = {name: len(attempts) for name, attempts in grown["attempts"].items()}
    assert numbers == {"auto": 2, "auto again": 2, "never": 3, "forced": 3}


@pytest.mark.slow
def test_an_attempt_can_be_named(outcomes):
    asked = outcomes["asked"]
    (attempt,) = asked["unknown"]["attempts"]
    assert "resume_attempt_id=19990101-000000-abcd: no such attempt" in asked["unknown"]["error"]
    assert asked["unknown"]["error"].endswith(f"there are {attempt}")
    refused = asked["refused"]["error"]
    assert refused.startswith("ConfigError: run.resume_attempt_id=")
    assert "\n  training.lr: 0.002 there, 0.001 here\n" in refused
    assert "'run.allow_mismatch=[training.lr]'" in refused
    assert asked["untouched"]
    assert len(asked["folders"]) == 1
    assert "\n  run.seed: 0 there, 1 here\n" in asked["half"]["error"]
    assert "training.lr" not in asked["half"]["error"]
    assert ended_as_if_undisturbed(asked["same"])


@pytest.mark.slow
def test_a_mismatch_that_is_allowed_goes_on_with_the_new_value(outcomes):
    asked = outcomes["asked"]
    assert asked["allowed"]["error"] == asked["of_group"]["error"] == "Died: "
    assert "resuming from checkpoint_2_1: 9 updates done" in asked["allowed"]["said"]
    assert len(asked["of_group"]["attempts"]) == 1
    # The warm-up of update 3 of a stage, then of half the rate.
    assert asked["rates"][-2:] == pytest.approx([2 * 1e-3 / 30, 3 * 1e-3 / 30])


# --- damage


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in MANIFESTS])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_is_used(outcomes, name):
    outcome, words = outcomes["damaged"][name], NAMED[name]
    warnings = [line for line in outcome["said"].splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"/checkpoint_2_1 cannot be used: {words}" in warnings[0]
    assert "resuming from checkpoint_2: 8 updates done" in outcome["said"]
    assert outcome["manifest"]["launches"][-1]["from_checkpoint"] == "checkpoint_2"
    assert not outcome["executed"]
    assert outcome["lost"] == list(range(9, DIES_AT + 1))
    assert ended_as_if_undisturbed(outcome)


NAMED = {
    "truncated": "model.safetensors has ",
    "flipped bit": "engine/state/zero_pp_rank_0_mp_rank_00_optim_states.pt has other content",
    "missing shard": "engine/state/mp_rank_00_model_states.pt is missing",
    "no resume state": "engine/resume_state.json is missing",
    "trap": "engine/random_0.pt has ",
    "no seal": "manifest.json is missing or broken",
    "misspelt seal": "manifest.json is missing or broken",
    "broken seal": "manifest.json is missing or broken",
    "no engine": "engine/resume_state.json is missing",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_cannot_be_read_is_made_again(outcomes, name):
    outcome = outcomes["damaged"][name]
    assert "resuming from checkpoint_2_1: 9 updates done" in outcome["said"]
    assert [launch["from_checkpoint"] for launch in outcome["manifest"]["launches"]] == ["checkpoint_2_1"]
    assert ended_as_if_undisturbed(outcome)


@pytest.mark.slow
def test_without_any_checkpoint_to_use_nothing_is_touched(outcomes):
    outcome = outcomes["all_damaged"]
    assert outcome["error"].startswith("CheckpointError: ")
    assert "none of its 3 checkpoints can be used" in outcome["error"]
    assert "run.resume_mode=never" in outcome["error"]
    assert outcome["untouched"]
    assert (outcome["never"]["error"], len(outcome["never"]["attempts"])) == ("Died: ", 2)


@pytest.mark.slow
def test_a_damaged_checkpoint_further_on_does_not_push_out_the_new_ones(outcomes):
    """With one to keep, and a stop before the run has come to the place of the damaged one."""
    outcome = outcomes["fallen_back"]
    assert outcome["before"] == ["checkpoint_1", "checkpoint_3"]
    assert outcome["stopped"]["error"] == "Interrupted: SIGTERM"
    assert outcome["between"]["checkpoints"] == ["checkpoint_1", "checkpoint_1_2", "checkpoint_3"]
    assert "resuming from checkpoint_1_2: 6 updates done" in outcome["ended"]["said"]
    assert outcome["ended"]["checkpoints"] == ["checkpoint_1", "checkpoint_4"]
    assert (outcome["ended"]["steps"], outcome["ended"]["damaged"]) == (ALL, [])


# --- the record


@pytest.mark.slow
def test_each_step_stands_once_in_the_record_and_its_first_try_elsewhere(outcomes):
    outcome = outcomes["record"]
    assert outcome["ended"]["lost"] == [10, 11]
    assert ended_as_if_undisturbed(outcome["ended"])


@pytest.mark.slow
def test_a_record_that_lost_lines_is_refused(outcomes):
    outcome = outcomes["record"]
    for name, there in (("refused", 300), ("gone", 0)):
        error = outcome[name]["error"]
        assert error.startswith("CheckpointError: ")
        assert f"metrics.jsonl: has {there} bytes, but had " in error
    assert outcome["untouched"]
    # On two ranks it is the error of both.
    errors = outcomes["after"]["refused"]
    assert len(errors) == 2
    assert all("metrics.jsonl: has 300 bytes" in error for error in errors)


# --- disks


@pytest.fixture
def disk(outcomes) -> dict[str, Any]:
    if "skipped" in outcomes["full_disk"]:
        pytest.skip(f"no file system can be mounted here: {outcomes['full_disk']['skipped']}")
    return outcomes["full_disk"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROOMS)
def test_a_full_disk_ends_the_run_with_one_clear_error_and_earlier_checkpoints_stand(disk, name):
    case = disk["cases"][name]
    assert case["error"].startswith("CheckpointError: ")
    assert "make room and start the same command again" in case["error"]
    if name not in ("no record", "nothing at the start"):
        assert "/checkpoint_2: could not be written (rank 0: " in case["error"]
        assert "earlier checkpoints are untouched" in case["error"]
    assert case["checkpoints"] == ["checkpoint_1", "checkpoint_1_2"]
    assert (case["damaged"], case["hidden"]) == ([], [])
    # The manifest may not have been writable any more, but it is never broken.
    assert case["manifest"]["status"] in ("failed", "running")
    assert case["manifest"]["status"] == "failed" or name not in ("half of the state", "half of the weights")
    assert case["manifest"]["last_checkpoint"] == "checkpoint_1_2"


@pytest.mark.slow
def test_with_room_the_same_command_carries_on(disk):
    assert disk["changed"] == []
    assert ended_as_if_undisturbed(disk["ended"])


@pytest.mark.slow
def test_a_disk_that_cannot_be_written_to_is_refused_at_the_start(disk):
    assert disk["read_only"]["error"].startswith("ConfigError: ")
    assert "cannot be written" in disk["read_only"]["error"]
    assert disk["read_only"]["untouched"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_write_is_the_error_of_all_at_once(outcomes, rank):
    outcome = outcomes["after"]["one cannot write"][rank]
    assert len(outcome["errors"]) == 2
    for error in outcome["errors"]:
        assert error.startswith("CheckpointError: ")
        assert f"/checkpoint_1: could not be written (rank {rank}: [Errno 28] No space left on device)" in error
        assert "make room and start the same command again" in error
    # A collective would wait for two minutes.
    assert outcome["seconds"] < 60
    assert (outcome["failed"]["checkpoints"], outcome["failed"]["hidden"]) == (["checkpoint_0_3"], [])
    assert (outcome["ended"]["error"], outcome["ended"]["steps"], outcome["ended"]["damaged"]) == (None, ALL, [])


# --- what is kept

LEFT = {
    "default": ["2", "3_3", "4"],
    "one": ["2", "4"],
    "all": ["0_3", "1", "1_2", "2", "2_1", "3", "3_3", "4"],
    "no best": ["3_3", "4"],
    "one and no best": ["4"],
    "improving": ["2", "4"],
    "rising": ["4"],
    # Each epoch that improves is saved, due or not.
    "seldom": ["1", "2", "3", "4"],
    "seldom and no best": ["3", "4"],
    "steps": ["1", "1_1", "2", "2_2", "3_3", "4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_which_checkpoints_are_kept_with_deaths_and_without(outcomes, name):
    """Accuracies of the four epochs: 0.5, 0.9, 0.7, 0.6; two launches die, after updates 5 and 13."""
    alone, resumed = outcomes["kept"][name]
    best = "checkpoint_4" if name == "rising" else "checkpoint_2"
    for outcome in (alone, resumed):
        assert outcome["error"] is None
        assert outcome["checkpoints"] == [f"checkpoint_{one}" for one in LEFT[name]]
        assert outcome["scores"][-1]["best_checkpoint"] == (best if "no best" not in name else None)
        assert outcome["manifest"]["best_checkpoint"] == outcome["scores"][-1]["best_checkpoint"]
        assert (outcome["hidden"], outcome["damaged"], outcome["steps"]) == ([], [], ALL)
    assert resumed["scores"] == alone["scores"]


# --- the lock


@pytest.mark.slow
def test_a_second_launch_is_refused_while_the_first_lives_and_takes_over_once_it_died(outcomes):
    outcome = outcomes["locked"]
    for refused in outcome["refused"]:
        assert refused["error"].startswith("ConfigError: ")
        assert f"already in progress, by process {outcome['pid']} on {os.uname().nodename} " in refused["error"]
    assert outcome["untouched"]
    assert f"taken over from process {outcome['pid']} on " in outcome["taken"]["said"]
    assert ended_as_if_undisturbed(outcome["taken"])
    assert "lock.json" not in outcome["left"]


@pytest.mark.slow
def test_a_launch_that_slept_too_long_leaves_the_run_to_the_one_that_took_it_over(outcomes):
    outcome = outcomes["taken_over"]
    assert "another launch took the run over" in outcome["error"]
    # Update 8 may be made before the heartbeat tells, but nothing is saved.
    assert outcome["checkpoints"] == ["checkpoint_1", "checkpoint_1_2"]
    assert outcome["hidden"] == [".checkpoint_2.part.other"]
    assert outcome["same_manifest"]
    assert outcome["lock"]["host"] == "elsewhere"


# --- evaluation


@pytest.mark.slow
def test_an_evaluation_reads_nothing_of_the_engine_and_refuses_a_damaged_folder(outcomes):
    outcome = outcomes["evaluation"]
    assert "coconut.json" in outcome["opened"]
    assert not [name for name in outcome["opened"] if name.startswith("engine")]
    # Nor by other ways than Python's: it does not mind zeros in the files of the engine.
    assert outcome["same"]
    for name, words in (
        ("truncated", "model.safetensors has "),
        ("missing shard", "mp_rank_00_model_states.pt is mis"),
    ):
        assert outcome["refused"][name].startswith("CheckpointError: ")
        assert "/checkpoint_4: is damaged: " in outcome["refused"][name]
        assert words in outcome["refused"][name]


# --- another number of ranks


@pytest.mark.slow
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_another_number_of_ranks_goes_on(outcomes, zero, ranks):
    alone = outcomes["other_ranks"][zero]["alone"]
    outcome = outcomes["other_ranks"][zero]["from_two"] if ranks == 1 else outcomes["after"][zero]
    assert outcome["error"] is None
    first, second = outcome["manifest"]["launches"]
    assert (first["world_size"], second["world_size"]) == (3 - ranks, ranks)
    assert (second["from_checkpoint"], second["converted"]) == ("checkpoint_2_1", True)
    assert ("converting the state of" in outcome["said"]) == (zero != "zero0")
    assert outcome["steps"] == ALL
    assert outcome["hidden"] == []
    assert outcome["losses"] == pytest.approx(alone, abs=1e-5)


# --- being asked to stop


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPS)
def test_a_signal_saves_at_that_very_update(outcomes, name):
    stopped, ended = (outcomes["stopped"][name][key] for key in ("stopped", "ended"))
    assert stopped["error"] == f"Interrupted: {STOPS[name][1].name}"
    assert (stopped["manifest"]["status"], stopped["manifest"]["reason"]) == ("failed", "interrupted")
    assert stopped.get("knows") == stopped.get("bytes")
    assert (stopped["manifest"]["resume_step"], stopped["manifest"]["last_checkpoint"]) == STOPPED[name]
    assert stopped["steps"] == ALL[: STOPPED[name][0]]
    assert ended["lost"] is None
    assert ended_as_if_undisturbed(ended)


STOPPED = {
    "update": (5, "checkpoint_1_1"),
    "interrupt": (5, "checkpoint_1_1"),
    "saved anyway": (3, "checkpoint_0_3"),
    "saving": (4, "checkpoint_1"),
    # Of the second epoch, at its beginning; then of the last epoch, at its end.
    "evaluation": (8, "checkpoint_1_4"),
    "last evaluation": (16, "checkpoint_4"),
    "before the first update": (0, None),
}
"""The update that each stop came with or after, and the checkpoint."""
