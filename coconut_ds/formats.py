"""How problems are written as text, and how an answer is found in generated text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One way to write problems as text."""

    name: str
    starts_with_eos: bool = False
    """Whether an end-of-sequence token precedes the question, as an attention sink."""
    question_end: str = ""
    """Text after the question."""
    step_end: str = ""
    """Text after each step."""
    answer_start: str = ""
    """Text that announces the answer."""
    one_token: bool = False
    """Whether methods with a curriculum learn only one target token per sequence: the next step, or the answer, whose
    ``answer_start`` is then part of the prompt. Such formats have no thought markers."""

    def extract(self, text: str) -> str:
        """The answer in a generated text."""
        if self.one_token:
            words = text.rsplit(self.answer_start.strip(), 1)[-1].split()
            return words[0] if words else ""
        return text.rsplit("#", 1)[-1].replace(",", "").strip()


TEXT = Format("text", question_end="\n", step_end="\n", answer_start="### ")
"""The format of the reference implementation. The answer is the text after the last ``#``, without commas, stripped."""

SYMBOLIC = Format("symbolic", starts_with_eos=True, step_end=" ", answer_start="[A] ", one_token=True)
"""The format of "Reasoning by Superposition" (arXiv 2505.12514): graphs as triples of symbols, one target token."""

FORMATS = {format.name: format for format in (TEXT, SYMBOLIC)}


def extract_answer(text: str, format: Format = TEXT) -> str:
    """The answer in a generated text, according to the format."""
    return format.extract(text)


def is_correct(text: str, answer: str, format: Format = TEXT) -> bool:
    """Whether the answer in ``text`` equals the reference answer, after extracting both in the same way."""
    return extract_answer(text, format) == extract_answer(answer, format)
