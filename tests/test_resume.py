"""The same command line continues a run: the right attempt, the right checkpoints, and only while it holds the lock."""

import os

import pytest
from resume_attempts import KEPT
from resume_outcomes import ALL, Outcomes, ended_as_if_undisturbed, outcomes_of


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What became of the scenarios."""
    folder = tmp_path_factory.mktemp("resume")
    return outcomes_of(folder, "grown", "asked", "kept", "locked", "taken_over")


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
    assert numbers == {"never": 2, "auto": 2, "force": 2}


def test_a_complete_run_says_so_and_is_left_alone(outcomes):
    grown = outcomes["grown"]
    complete, (attempt,) = grown["complete"], grown["ended"]["attempts"]
    assert (complete["error"], complete["untouched"], complete["attempts"]) == (None, True, [attempt])
    run, said = complete["said"].splitlines()[-2:]
    assert run.startswith("run: ")
    assert run.endswith(attempt)
    assert said.startswith("This run is complete. Its best checkpoint: ")
    assert said.endswith("larger training.num_epochs continues it; run.resume_mode=never starts a new attempt.")


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
