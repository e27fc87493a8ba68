"""Ranks that were not started alike refuse to begin, all with the same message."""

import json
from pathlib import Path

import pytest
from launching import environment, run

from coconut_ds.distributed import agreement
from coconut_ds.distributed.agreement import refuse_disagreement
from coconut_ds.distributed.ranks import Ranks

WORKER = Path(__file__).resolve().parent / "unequal_ranks.py"
EXPECTED = {
    "seed": "run.seed: 0 on rank 0; 7 on rank 1",
    "lr": "training.lr: 0.0",
    "resume": 'run.resume_mode: "auto" on rank 0; "never" on rank 1',
    "zero": "content of deepspeed.config:",
    "folder": "run.save_path:",
    "data": "content of data.train_path:",
    "code": "code of coconut_ds/model/loss.py:",
    "library": 'version of tokenizers: "1.0" on rank 0; "1.1" on rank 1',
    "variable": 'environment variable NVIDIA_TF32_OVERRIDE: "not set" on rank 0; "0" on rank 1',
    "program": 'program: "training" on rank 0; "evaluation" on rank 1',
    "evaluation": "n_thoughts: 0 on rank 0; 1 on rank 1",
    "loaded": 'model.tokenizer_content: "tokenizer 0" on rank 0; "tokenizer 1" on rank 1',
}
"""What the message of each case must contain."""


@pytest.mark.slow
def test_ranks_that_differ_in_anything_refuse_to_begin_and_say_what_differs(tmp_path):
    done = run([WORKER, tmp_path / "out.json", tmp_path], environment(), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"out.json.{rank}").read_text()) for rank in (0, 1))
    ms = [each.pop("ms") for each in (first, second)]
    assert first == second
    assert set(first) == set(EXPECTED)
    for name, line in EXPECTED.items():
        assert line in first[name], (name, first[name])
        assert first[name].startswith("ConfigError: the ranks were not started alike, so nothing was begun: ")
    assert "1 entry differs from rank 0\n" in first["seed"]
    assert not (tmp_path / "outputs").exists()
    # 17 ms on two free cores.
    assert min(ms) < 500


def test_one_rank_alone_makes_no_table():
    refuse_disagreement(Ranks(), lambda: pytest.fail("made a table"))


def test_the_message_groups_ranks_and_is_cut(monkeypatch):
    first = {f"key {number}": "0" for number in range(10)} | {"text": json.dumps("a" * 100)}
    same = {f"key {number}": "1" for number in range(10)}
    text = agreement._message(first, [{}, same, same | {"text": "absent"}, *[{"key 0": "2"}] * 6])
    assert "11 entries differ from rank 0\n" in text
    assert "  key 0: 0 on rank 0; 1 on ranks 1, 2; 2 on ranks 3, 4, 5, 6 and 2 more\n" in text
    assert "  and 3 more\n" in text
    assert "key 8" not in text
