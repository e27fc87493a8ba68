"""Problems and files for tests of token tables."""

import json
from pathlib import Path

import numpy as np

from coconut_ds.data.problem import Problem

WORDS = ["Tom", "is", "a", "bompus", "1", "22"]
PROBLEMS = [Problem(f"Tom is {number} ?", ("a bompus", "22") * (number % 3), str(number)) for number in range(7)]


def write(path: Path, problems: list[Problem]) -> Path:
    path.write_text(json.dumps([problem.as_dict() for problem in problems]), encoding="utf-8")
    return path


def swapped(whole: bytes, old: list[int], new: list[int]) -> bytes:
    """The file's bytes with other 32-bit numbers in place of ``old``."""
    before, after = (np.array(numbers, dtype="<i4").tobytes() for numbers in (old, new))
    assert before in whole
    return whole.replace(before, after)
