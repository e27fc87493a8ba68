"""What a model answers when its thinking is ended after k thoughts.

Two answers for each k: the one in the text that it writes by itself (with fewer thoughts than it was trained to end
with it may first write the steps that are left), and the *forced* one, which follows when the sign that announces an
answer is given right after the thoughts. Source: the variants with k thoughts of arXiv 2412.06769, section 5; the
probability of an answer after each thought as in arXiv 2602.08783.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import encode_answers
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.formats import extract_answer, is_correct
from coconut_ds.generation.requests import Completion
from coconut_ds.probing.cases import OnProgress, Plain, prepare, run_requests, score, writing_request
from coconut_ds.reasoner import Reasoner


@dataclass(frozen=True)
class AnswerAfter(Plain):
    """One question with its thinking ended after so many thoughts."""

    num_thoughts: int
    text: str
    """What the model writes by itself."""
    answer: str
    """In it."""
    probability: float
    """Of the text, end of sequence included."""
    forced: str
    """The answer, once the sign that announces one is given."""
    forced_probability: float
    """Of the forced answer, end of sequence included."""
    known_log_probability: float | None
    """Of the known answer, once the sign is given, natural logarithm; None where no answer is known."""
    is_right: bool | None
    """The answer in the text is the known one."""
    is_forced_right: bool | None
    """The forced answer is."""


@dataclass(frozen=True)
class SweepPoint(Plain):
    """A data set with thinking ended after so many thoughts."""

    num_thoughts: int
    num_problems: int
    right: Mean
    """Share of right answers in what the model writes by itself."""
    forced_right: Mean
    """Share of right forced answers."""
    known_log_probability: Mean
    """Of the known answers, once the sign is given."""


def answers_after(
    reasoner: Reasoner,
    questions: Sequence[str],
    known: Sequence[str | None] | None = None,
    numbers: Sequence[int] | None = None,
    *,
    max_new_tokens: int = 128,
    progress: OnProgress | None = None,
) -> list[list[AnswerAfter]]:
    """For each question the answers after each number of thoughts.

    Args:
        reasoner: the model.
        questions: any number.
        known: their right answers, where they are known.
        numbers: of thoughts or pauses; None: 0 to the checkpoint's number.
        max_new_tokens: longest text.
        progress: see ``Progress``.

    Raises:
        DataError: a question is too long, or the method does not think and thoughts were asked for.
    """
    numbers = range(reasoner.card.num_latents + 1) if numbers is None else numbers
    known = [None] * len(questions) if known is None else known
    form, tokenizer = reasoner.card.text_format, reasoner.backbone.tokenizer
    cue, tails = encode_answers(tokenizer, [answer or "" for answer in known], form)
    given = () if form.one_token else cue
    requests = []
    for number in numbers:
        for case, tail in zip(prepare(reasoner, questions, number, max_new_tokens), tails, strict=True):
            requests.append(writing_request(case, reasoner, max_new_tokens))
            requests.append(writing_request(case, reasoner, max_new_tokens, given))
            requests.append(score(case, reasoner, tail[:1] if form.one_token else tail, given))
    made = iter(run_requests(reasoner, requests, progress))
    after: list[list[AnswerAfter]] = [[] for _ in questions]
    for number in numbers:
        for own, answer in zip(after, known, strict=True):
            own.append(_answer(reasoner, number, answer, next(made), next(made), next(made)))
    return after


def sweep(
    reasoner: Reasoner,
    problems: Sequence[Problem],
    numbers: Sequence[int] | None = None,
    *,
    max_new_tokens: int = 128,
    progress: OnProgress | None = None,
) -> list[SweepPoint]:
    """Accuracy over a data set after each number of thoughts; see ``answers_after``."""
    questions, known = [p.question for p in problems], [p.answer for p in problems]
    after = answers_after(reasoner, questions, known, numbers, max_new_tokens=max_new_tokens, progress=progress)
    return [_point(column) for column in zip(*after, strict=True)]


def _point(column: Sequence[AnswerAfter]) -> SweepPoint:
    return SweepPoint(
        column[0].num_thoughts,
        len(column),
        mean_of([float(bool(one.is_right)) for one in column]),
        mean_of([float(bool(one.is_forced_right)) for one in column]),
        mean_of([one.known_log_probability or 0.0 for one in column]),
    )


def _answer(
    reasoner: Reasoner, number: int, known: str | None, written: Completion, forced: Completion, scored: Completion
) -> AnswerAfter:
    form = reasoner.card.text_format
    text = reasoner.prompter.text(written.tokens)
    given = "" if form.one_token else form.answer_start
    forced_text = given + reasoner.prompter.text(forced.tokens)
    return AnswerAfter(
        num_thoughts=number,
        text=text,
        answer=extract_answer(text, form),
        probability=math.exp(sum(written.log_probabilities)),
        forced=extract_answer(forced_text, form),
        forced_probability=math.exp(sum(forced.log_probabilities)),
        known_log_probability=None if known is None else sum(scored.log_probabilities),
        is_right=None if known is None else is_correct(text, known, form),
        is_forced_right=None if known is None else is_correct(forced_text, known, form),
    )
