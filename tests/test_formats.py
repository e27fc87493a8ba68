"""Answers are compared as in the reference implementation; symbolic answers by one symbol."""

import pytest

from coconut_ds.formats import SYMBOLIC, extract_answer, is_correct


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
def test_the_answer_follows_the_last_hash_without_commas(text: str, answer: str) -> None:
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


@pytest.mark.parametrize(
    ("text", "answer"), [("12", "12"), ("7 9 [A] 12", "12"), ("[A] 12 13", "12"), ("[A]", ""), ("", "")]
)
def test_a_symbolic_answer_is_the_first_symbol_after_the_last_cue(text: str, answer: str) -> None:
    assert extract_answer(text, SYMBOLIC) == answer
