"""Comparing generated text with the gold answer, as the reference implementation does."""

from collections.abc import Sequence


def extract_answer(text: str) -> str:
    """The text after the last ``#``, commas removed, stripped."""
    return text.rsplit("#", 1)[-1].replace(",", "").strip()


def is_correct(text: str, answer: str) -> bool:
    """Whether the answer in ``text`` equals the gold one exactly, both brought to the same form."""
    return extract_answer(text) == extract_answer(answer)


def steps_written(text: str) -> list[str]:
    """The steps that stand before the answer, one a line."""
    before = text.split("#", 1)[0]
    return [line.strip() for line in before.splitlines() if line.strip()]


def is_wholly_right(text: str, steps: Sequence[str], answer: str) -> bool:
    """Whether answer and all written steps equal the gold ones."""
    return is_correct(text, answer) and steps_written(text) == [step.strip() for step in steps]
