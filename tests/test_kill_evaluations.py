"""A short form of ``kill_evaluations.py``."""

import pytest
from kill_evaluations import run_kills


@pytest.mark.slow
def test_an_evaluation_that_is_killed_and_started_again_becomes_the_one_left_alone(tmp_path):
    result = run_kills(tmp_path, kills=5, seed=0, problems=9)
    assert result["kills"] == 5
    assert not result["mismatches"]
