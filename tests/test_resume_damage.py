"""A run is resumed from the newest checkpoint that can be used, with the same bits at its end, or not at all."""

import pytest
from resume_damage import DAMAGES, MANIFESTS
from resume_outcomes import ALL, Outcomes, ended_as_if_undisturbed, outcomes_of
from resuming import DIES_AT


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What became of the scenarios."""
    folder = tmp_path_factory.mktemp("damage")
    return outcomes_of(folder, "damaged", "all_damaged", "fallen_back", "record", "evaluation")


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
    "flipped bit": "engine/state/zero_pp_rank_0_mp_rank_00_optim_states.safetensors has other content",
    "missing shard": "engine/state/mp_rank_00_model_states.safetensors is missing",
    "no resume state": "engine/resume_state.json is missing",
    "trap": "engine/random_0.safetensors has ",
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


@pytest.mark.slow
def test_each_update_is_in_the_record_once_and_its_first_try_in_another_file(outcomes):
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


@pytest.mark.slow
def test_an_evaluation_reads_nothing_of_the_engine_and_refuses_a_damaged_folder(outcomes):
    outcome = outcomes["evaluation"]
    assert "coconut.json" in outcome["opened"]
    assert not [name for name in outcome["opened"] if name.startswith("engine")]
    # Nor by other ways than Python's: it does not mind zeros in the files of the engine.
    assert outcome["same"]
    for name, words in (
        ("truncated", "model.safetensors has "),
        ("missing shard", "mp_rank_00_model_states.safetensors is mis"),
    ):
        assert outcome["refused"][name].startswith("CheckpointError: ")
        assert "/checkpoint_4: is damaged: " in outcome["refused"][name]
        assert words in outcome["refused"][name]
