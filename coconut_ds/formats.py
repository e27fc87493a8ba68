"""How problems become text: what ends a question and a step, what announces the answer, where an answer is found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One way to write problems down."""

    name: str
    starts_with_eos: bool = False
    """An end of sequence stands before the question, so that attention has a place to rest."""
    question_end: str = ""
    step_end: str = ""
    answer_start: str = ""
    one_token: bool = False
    """Methods with a curriculum learn one token a sequence: the next step, or the answer after ``answer_start``, which
    is then given. No thought markers."""

    def extract(self, text: str) -> str:
        """The answer in generated text."""
        if self.one_token:
            words = text.rsplit(self.answer_start.strip(), 1)[-1].split()
            return words[0] if words else ""
        return text.rsplit("#", 1)[-1].replace(",", "").strip()


TEXT = Format("text", question_end="\n", step_end="\n", answer_start="### ")
"""As the reference implementation writes and scores: the text after the last ``#``, commas removed, stripped."""

SYMBOLIC = Format("symbolic", starts_with_eos=True, step_end=" ", answer_start="[A] ", one_token=True)
"""As in "Reasoning by Superposition" (arXiv 2505.12514): graphs as triples of symbols, one target token a sequence."""

FORMATS = {format.name: format for format in (TEXT, SYMBOLIC)}


def extract_answer(text: str, format: Format = TEXT) -> str:
    """The answer in ``text``, as the format finds it."""
    return format.extract(text)


def is_correct(text: str, answer: str, format: Format = TEXT) -> bool:
    """Whether the answer in ``text`` equals the gold one exactly, both brought to the same form."""
    return extract_answer(text, format) == extract_answer(answer, format)
