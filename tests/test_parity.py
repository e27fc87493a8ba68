"""The latent loop reproduces numbers recorded from the public implementation (its code under transformers 4.46)."""

import json
import shutil
from pathlib import Path

import pytest
from launching import environment, run
from parity import TOLERANCE, measure

HERE = Path(__file__).parent


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_recorded_numbers_are_reproduced(family):
    """Loss, logits at labels, gradient norms, greedy generations and AdamW's loss curve agree to 1e-4."""
    errors = measure(HERE / "parity_data" / family)
    assert set(errors) == {
        "logits",
        "loss",
        "gradient norms (relative)",
        "generated tokens that differ",
        "loss curve",
    }
    assert max(errors.values()) <= TOLERANCE, errors


def test_the_command_refuses_other_numbers(tmp_path):
    """The exit code is 1 for a folder whose recorded loss is 1 % off."""
    folder = shutil.copytree(HERE / "parity_data" / "gpt2", tmp_path / "gpt2")
    expected = json.loads((folder / "expected.json").read_text())
    expected["cases"] = expected["cases"][:1]
    expected["cases"][0]["loss"] *= 1.01
    (folder / "expected.json").write_text(json.dumps(expected))
    done = run([HERE / "parity.py", folder], environment())
    assert done.returncode == 1, done.stderr
    assert "NOT within" in done.stdout
