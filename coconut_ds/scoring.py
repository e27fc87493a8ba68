"""Comparing generated text with the gold answer."""

from coconut_ds.formats import TEXT, Format


def extract_answer(text: str, format: Format = TEXT) -> str:
    """The answer in ``text``, as the format finds it."""
    return format.extract(text)


def is_correct(text: str, answer: str, format: Format = TEXT) -> bool:
    """Whether the answer in ``text`` equals the gold one exactly, both brought to the same form."""
    return extract_answer(text, format) == extract_answer(answer, format)
