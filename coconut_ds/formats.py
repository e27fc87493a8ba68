"""How problems are written as text, how an answer is found in generated text, and when it is right."""

import re
from dataclasses import dataclass
from decimal import Decimal

ANSWER_KINDS = ("text", "numbers")
"""Values of ``data.answers``, the ways to compare answers."""
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_OWN_COMMA = re.compile(r",(?=\S)")
"""A comma within a word, as in ``1,2`` or ``A,B``, after separators of thousands have been removed."""
_OWN_HASH = re.compile(r"[^\s#]#(?!#)")
"""A ``#`` that belongs to a word, as in ``C#``."""
_NUMBER = re.compile(r"(?P<sign>[-+\u2212]?)\s?\$?\s?(?P<value>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s?%?\.?")


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
    answer_mark: str = "#"
    """The answer is what follows the last of these in a text (formats without ``one_token``)."""
    single_spaces: bool = False
    """Whether spaces around a question are left out, and each two spaces within it are written as one."""
    one_token: bool = False
    """Whether methods with a curriculum learn only one target token per sequence: the next step, or the answer, whose
    ``answer_start`` is then part of the prompt. Such formats have no thought markers."""
    chat_template: bool = False
    """Whether the question is a user's message, which the tokenizer's chat template turns into the prompt. The template
    then takes the place of ``question_end``."""

    def extract(self, text: str, gold: str | None = None) -> str:
        """The answer in a generated text.

        In formats without ``one_token`` it is what follows the last ``answer_mark``, without commas. Characters that
        the reference answer ``gold`` itself contains are kept: if a ``#`` belongs to one of its words, as in ``C#``,
        the answer is what follows the last ``answer_start``; if a comma is within a word and separates no thousands, as
        in ``1,2``, all commas are kept.
        """
        if self.one_token:
            words = text.rsplit(self.answer_start.strip(), 1)[-1].split()
            return words[0] if words else ""
        own_hash = gold is not None and _OWN_HASH.search(gold)
        own_comma = gold is not None and _OWN_COMMA.search(_THOUSANDS.sub("", gold))
        found = text.rsplit(self.answer_start.strip() if own_hash else self.answer_mark, 1)[-1]
        return (found if own_comma else found.replace(",", "")).strip()

    def question(self, text: str) -> str:
        """A question as the model reads it, with the text that follows it."""
        return f"{text.strip().replace('  ', ' ') if self.single_spaces else text}{self.question_end}"

    def places(self, text: str) -> list[int]:
        """For each character of ``question(text)``, the place of that character in ``text``; and the place of the end.

        Characters that the format adds have places after the last one that is kept.
        """
        if not self.single_spaces:
            return list(range(len(text) + len(self.question_end) + 1))
        place = len(text) - len(text.lstrip())
        end = place + len(text.strip())
        kept = []
        while place < end:
            kept.append(place)
            place += 2 if text.startswith("  ", place) else 1
        return [*kept, *range(end, end + len(self.question_end) + 1)]

    def gold(self, answer: str) -> str:
        """What scoring reads in a reference answer; empty if it reads nothing, so that no text can be scored."""
        return self.extract(answer, answer)

    def alters(self, answer: str) -> bool:
        """Whether scoring reads something else in a reference answer than the answer without thousands separators."""
        return self.gold(answer) != _THOUSANDS.sub(lambda found: found[0].replace(",", ""), answer).strip()


TEXT = Format("text", question_end="\n", step_end="\n", answer_start="### ")
"""The format of the reference implementation. The answer is the text after the last ``#``, without commas, stripped."""

SYMBOLIC = Format("symbolic", starts_with_eos=True, step_end=" ", answer_start="[A] ", one_token=True)
"""The format of "Reasoning by Superposition" (arXiv 2505.12514): graphs as triples of symbols, one target token."""

CODI = Format("codi", step_end=" ", answer_start="The answer is: ", answer_mark="The answer is:", single_spaces=True)
"""The format of CODI (zhenyi4/codi, as its scripts set ``remove_eos``), which its published checkpoints were trained
with: nothing between question and thoughts, and the answer as a sentence. Its authors evaluate with single spaces in
questions, and score the last number of the text."""

FORMATS = {format.name: format for format in (TEXT, SYMBOLIC, CODI)}


def extract_answer(text: str, format: Format = TEXT, gold: str | None = None) -> str:
    """The answer in a generated text, according to the format; see ``Format.extract``."""
    return format.extract(text, gold)


def is_correct(text: str, answer: str, format: Format = TEXT, kind: str = "text") -> bool:
    """Whether the answer in ``text`` equals the reference answer, after extracting both in the same way.

    With ``kind="numbers"`` (see ``ANSWER_KINDS``), answers that are numbers are also equal if they have the same value:
    ``145``, ``145.0``, ``$145``, ``145%`` and ``145.`` are the same. No text is right if scoring reads nothing in the
    reference answer.
    """
    found, expected = format.extract(text, answer), format.gold(answer)
    if not expected or found == expected:
        return bool(expected)
    value = number_in(expected) if kind == "numbers" else None
    return value is not None and value == number_in(found)


def number_in(answer: str) -> Decimal | None:
    """The value of an answer that is a number, with or without ``$``, ``%`` or a full stop; None for other answers."""
    found = _NUMBER.fullmatch(answer)
    if found is None:
        return None
    value = Decimal(found["value"])
    # Not -value, which rounds to the precision of the context.
    return value if found["sign"] in ("", "+") else value.copy_negate()
