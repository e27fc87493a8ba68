"""Stored predictions of an unfinished evaluation: whatever a crash or a disk does to the files, none counts wrongly."""

import os
import random

import pytest

from coconut_ds.errors import DataError
from coconut_ds.evaluation.partial import PartialPredictions
from coconut_ds.evaluation.prediction import Prediction

MADE = [
    Prediction(n, "1 + 2 é日", f"a\u2028b {n}", "3", "3", n % 2 == 0, None, None, 1, 2, 0, 4, "length", None, 0.5)
    for n in range(5)
]


def stored(folder, made=MADE):
    partial = PartialPredictions(folder, "one")
    for one in made:
        partial.add(0, one)
    partial.close()
    return partial


def test_a_file_may_end_anywhere_and_any_bit_may_flip(tmp_path):
    """What is read is a subset of what was stored, and all of it up to the damage."""
    partial = stored(tmp_path)
    (path,) = partial.folder.iterdir()
    whole, draw = path.read_bytes(), random.Random(0)
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in {*range(ends[0] - 3, ends[0] + 60), *ends, len(whole) - 1}:
        for zeros in (0, 4096):
            path.write_bytes(whole[:cut] + bytes(zeros))
            found = partial.read(pytest.fail)
            assert found == {(0, n, 0): MADE[n] for n in range(sum(end <= cut for end in ends))}
    for _ in range(80):
        at = draw.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        warnings: list[str] = []
        found = partial.read(warnings.append)
        assert all(found[key] == MADE[key[1]] for key in found)
        # A newline that is lost joins two lines, or cuts off the last one.
        assert len(found) >= len(MADE) - 2
        assert len(warnings) == ((len(found) < len(MADE) and whole[at : at + 1] != b"\n") or at + 1 in ends[:-1])
        assert all("stored predictions are damaged and are made again" in line for line in warnings)


def test_a_process_with_the_id_of_a_killed_one_writes_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 7)
    first = stored(tmp_path, MADE[:2])
    (path,) = first.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    stored(tmp_path, MADE[2:])
    assert len(list(first.folder.iterdir())) == 2
    assert first.read(pytest.fail) == {(0, n, 0): MADE[n] for n in (0, 2, 3, 4)}
    # A process with this id was killed while it removed the folder.
    gone = first.folder.with_name(".one.gone.7")
    gone.mkdir()
    (gone / "rest").touch()
    first.discard()
    assert list(tmp_path.iterdir()) == []


def test_predictions_of_an_earlier_version_count(tmp_path):
    """Its lines have no checksum; half a line counts as damaged."""
    partial = stored(tmp_path)
    (path,) = partial.folder.iterdir()
    lines = [line[9:] for line in path.read_bytes().splitlines()]
    path.write_bytes(b"\n".join([*lines[:2], lines[2][:-3], *lines[3:], b""]))
    warnings: list[str] = []
    assert partial.read(warnings.append) == {(0, n, 0): MADE[n] for n in (0, 1, 3, 4)}
    assert len(warnings) == 1


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path):
    partial = PartialPredictions(tmp_path, "one")
    partial.add(0, MADE[0])
    partial._file.close()
    partial._file = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(DataError, match=r"No space left.*are kept; make room there, or set out="):
        partial.add(0, MADE[1])
    partial.close()
    assert len(partial.read(pytest.fail)) == 1
