"""Runs that are asked to stop, run out of disk or continue on another number of ranks end as they should."""

from typing import Any

import pytest
from resume_disks import ROOMS
from resume_outcomes import ALL, Outcomes, ended_as_if_undisturbed, outcomes_of
from resume_ranks import ZEROS
from resume_stops import STOPS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What became of the scenarios: of two ranks, of one, of two again."""
    folder = tmp_path_factory.mktemp("stops")
    found = outcomes_of(folder, "before", ranks=2)
    found |= outcomes_of(folder, "full_disk", "stopped", "other_ranks")
    return Outcomes(found | outcomes_of(folder, "after", ranks=2))


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


@pytest.mark.slow
def test_a_record_that_lost_lines_is_the_error_of_both_ranks(outcomes):
    errors = outcomes["after"]["refused"]
    assert len(errors) == 2
    assert all("metrics.jsonl: has 300 bytes" in error for error in errors)


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
