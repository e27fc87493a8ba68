"""Answers are compared as the reference implementation does; whole solutions step by step."""

import pytest

from coconut_ds.scoring import extract_answer, is_correct, is_wholly_right, steps_written


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3\n6\n### 6", "6"),
        ("### 6\n", "6"),
        ("### 1,234,567", "1234567"),
        ("#### 7 ### 8", "8"),
        ("### Tom is a gorpus.", "Tom is a gorpus."),
        ("no sign at all ", "no sign at all"),
        ("### ", ""),
        ("", ""),
    ],
)
def test_the_answer_is_what_stands_after_the_last_hash_without_commas(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("### 1234", "1,234", True),
        ("### 1,234", " 1234", True),
        ("### 12", "1234", False),
        ("### 1234.0", "1234", False),
        ("1234 ###", "1234", False),
    ],
)
def test_an_answer_is_right_when_it_is_exactly_the_gold_one(text: str, gold: str, correct: bool) -> None:
    assert is_correct(text, gold) is correct


def test_written_steps_are_the_lines_before_the_first_hash() -> None:
    assert steps_written(" 3 \n\n6\n### 6\n9") == ["3", "6"]
    assert steps_written("### 6") == []


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3\n6\n### 6", True),
        (" 3\n6 \n\n###6 ", True),
        ("6\n### 6", False),
        ("3\n3\n6\n### 6", False),
        ("6\n3\n### 6", False),
        ("3\n6\n### 5", False),
        ("3 6\n### 6", False),
    ],
)
def test_wholly_right_needs_every_step_in_order_and_the_answer(text: str, right: bool) -> None:
    assert is_wholly_right(text, ["3", "6\n"], "6") is right
