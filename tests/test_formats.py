"""Answers are compared as in the reference implementation; symbolic answers by one symbol."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coconut_ds.formats import SYMBOLIC, TEXT, extract_answer, is_correct, number_in
from coconut_ds.settings.compose import compose_config


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


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("### F#", "C#", False),
        ("### C#", "C#", True),
        ("C#", "C#", True),
        ("### C#m", "F#m", False),
        ("### F#m", "F#m", True),
        ("", "", False),
        ("### ", " ", False),
        ("### ", "###", False),
        ("### ", ",", False),
        ("### 12", "1,2", False),
        ("### 1,2", "1,2", True),
        ("### AB", "A,B", False),
        ("### Paris France", "Paris, France", True),
        ("### 72", "He sold 5.\n#### 72", True),
        ("### 72", "so 72.#### 72", True),
        ("### 1000", "# 1000", True),
        ("### 1,234,567.5", "1234567.5", True),
    ],
)
def test_a_reference_answer_keeps_its_own_marks_and_an_empty_one_makes_no_text_right(text, gold, correct):
    assert is_correct(text, gold) is is_correct(text, gold, kind="numbers") is correct


def test_an_empty_symbolic_answer_makes_no_text_right():
    assert not is_correct("", "", SYMBOLIC)
    assert is_correct("[A] 12", "12", SYMBOLIC)


@pytest.mark.parametrize(
    ("gold", "read", "alters"),
    [
        ("1,234", "1234", False),
        (" 7 ", "7", False),
        ("C#", "C#", False),
        ("1,2", "1,2", False),
        ("Natalia … #### 72", "72", True),
        ("Paris, France", "Paris France", True),
        ("C##", "", True),
    ],
)
def test_what_scoring_reads_in_a_reference_answer(gold, read, alters):
    assert (TEXT.gold(gold), TEXT.alters(gold)) == (read, alters)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        *(("### 145", gold) for gold in ("145.0", "145.", "$145", "145%", "+145", "0145", "145.00", "145")),
        *(("### -1,450.50", gold) for gold in ("-1450.5", "-$1,450.5", "\u22121450.50")),
        ("### .5", "0.5"),
        ("### $1,000.", "1000"),
    ],
)
def test_equal_numbers_are_equal_answers_only_if_the_data_says_so(text, gold):
    assert is_correct(text, gold, kind="numbers")
    assert is_correct(gold, text.removeprefix("### "), kind="numbers")
    assert is_correct(text, gold) == (TEXT.extract(text) == TEXT.gold(gold))


@pytest.mark.parametrize(
    ("text", "gold"), [("145", "146"), ("145", "-145"), ("145 km", "145"), ("1e3", "1000"), ("²", "2")]
)
def test_other_answers_stay_different(text, gold):
    assert not is_correct(f"### {text}", gold, kind="numbers")


@settings(max_examples=50)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=3), st.integers(0, 3))
def test_the_value_of_a_number_is_read_however_it_is_written(value, zeros):
    text = format(value, "f") + "0" * zeros
    assert number_in(text) == number_in(f"{text}%") == Decimal(text)
    assert number_in(f"{'-' * (value.is_signed())}${text.removeprefix('-')}") == value


@settings(max_examples=50)
@given(st.text(), st.text())
def test_a_text_is_right_as_before_unless_the_reference_answer_has_marks_of_its_own(text, gold):
    """The rule of the reference implementation, for answers that contain neither # nor a comma and are not empty."""
    plain = gold.replace("#", "").replace(",", "")
    expected = bool(plain.strip()) and text.rsplit("#", 1)[-1].replace(",", "").strip() == plain.strip()
    assert is_correct(text, plain) == expected
    assert is_correct(f"steps\n### {plain}", plain) == bool(plain.strip())


def test_the_conventions_come_with_the_benchmark():
    """Only data of numbers; other data is compared as before."""
    kinds = {name: compose_config([f"data={name}"]).data.answers for name in ("gsm_file", "prosqa_file", "modular_sum")}
    assert kinds == {"gsm_file": "numbers", "prosqa_file": "text", "modular_sum": "text"}
