"""The model's answers when its thinking is stopped after k thoughts.

There are two answers for each k. The first is in the text that the model generates freely; with fewer thoughts than in
the last stage of its training, the model may first write the remaining steps as text. The second is the *forced*
answer: the cue that announces an answer (such as ``###``) is appended directly after the thoughts, so that no steps can
    be written.

Sources: the variants with k thoughts of arXiv 2412.06769, section 5; the probability of an answer after each thought as
    in
arXiv 2602.08783.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import encode_answers
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.generation.requests import Completion
from coconut_ds.parts import Parts, in_parts
from coconut_ds.probing.cases import OnProgress, Plain, Sample, prepare, run_requests, scoring_request, writing_request
from coconut_ds.reasoner import Reasoner
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring


@dataclass(frozen=True)
class AnswerAfter(Plain):
    """The model's answers to one question when its thinking is stopped after ``num_thoughts`` thoughts."""

    num_thoughts: int
    text: str
    """The text that the model generates freely."""
    answer: str
    """The answer extracted from that text."""
    probability: float
    """Probability of the text, including the end of sequence."""
    forced: str
    """The forced answer: the one that the model gives directly after the cue."""
    forced_probability: float
    """Probability of the forced answer, including the end of sequence."""
    known_log_probability: float | None
    """Log probability (natural) of the right answer directly after the cue; None if the right answer is not known."""
    is_right: bool | None
    """Whether the answer in the freely generated text is right; None if the right answer is not known."""
    is_forced_right: bool | None
    """Whether the forced answer is right; None if the right answer is not known."""


@dataclass(frozen=True)
class SweepPoint(Plain):
    """Results over a data set when thinking is stopped after ``num_thoughts`` thoughts."""

    num_thoughts: int
    num_problems: int
    right: Mean
    """Accuracy of the answers in freely generated text."""
    forced_right: Mean
    """Accuracy of the forced answers."""
    known_log_probability: Mean
    """Mean log probability (natural) of the right answers directly after the cue."""


@in_parts
def answers_after(
    reasoner: Reasoner,
    questions: Sequence[str],
    known: Sequence[str | None] | None = None,
    numbers: Sequence[int] | None = None,
    *,
    max_new_tokens: int = 128,
    progress: OnProgress | None = None,
    scoring: Scoring = EXACT,
    sample: Sample | None = None,
) -> Parts[list[list[AnswerAfter]]]:
    """Answers each question once with each number of thoughts.

    Args:
        reasoner: the model.
        questions: any number of questions.
        known: the right answers, None for those that are not known.
        numbers: numbers of thoughts or pauses; None: from 0 to the checkpoint's number.
        max_new_tokens: length limit of the generated text, in tokens.
        progress: see ``OnProgress``.
        scoring: the convention that decides which answers are right.
        sample: which sample of each question, with noise in its thoughts; None: no noise.

    Returns:
        For each question, one result for each number of thoughts.

    Raises:
        DataError: a question is too long, or thoughts are requested and the method does not think.
    """
    numbers = range(reasoner.card.num_latents + 1) if numbers is None else numbers
    known = [None] * len(questions) if known is None else known
    form, tokenizer = reasoner.card.text_format, reasoner.backbone.tokenizer
    cue, tails = encode_answers(tokenizer, [answer or "" for answer in known], form)
    given = () if form.one_token else cue
    requests = []
    for number in numbers:
        cases = yield from prepare.parts(reasoner, questions, number, max_new_tokens, sample)
        for case, tail in zip(cases, tails, strict=True):
            requests.append(writing_request(case, reasoner, max_new_tokens))
            requests.append(writing_request(case, reasoner, max_new_tokens, given))
            requests.append(scoring_request(case, reasoner, tail[:1] if form.one_token else tail, given))
    made = iter((yield from run_requests.parts(reasoner, requests, progress)))
    after: list[list[AnswerAfter]] = [[] for _ in questions]
    for number in numbers:
        for own, answer in zip(after, known, strict=True):
            own.append(_answer(reasoner, number, answer, scoring, next(made), next(made), next(made)))
        yield None
    return after


@in_parts
def sweep(
    reasoner: Reasoner,
    problems: Sequence[Problem],
    numbers: Sequence[int] | None = None,
    *,
    max_new_tokens: int = 128,
    progress: OnProgress | None = None,
    scoring: Scoring = EXACT,
    sample: Sample | None = None,
) -> Parts[list[SweepPoint]]:
    """Accuracy on a data set with each number of thoughts; the arguments are those of ``answers_after``."""
    questions, known = [p.question for p in problems], [p.answer for p in problems]
    after = yield from answers_after.parts(
        *(reasoner, questions, known, numbers),
        max_new_tokens=max_new_tokens,
        progress=progress,
        scoring=scoring,
        sample=sample,
    )
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
    reasoner: Reasoner,
    number: int,
    known: str | None,
    scoring: Scoring,
    written: Completion,
    forced: Completion,
    scored: Completion,
) -> AnswerAfter:
    form = reasoner.card.text_format
    text = reasoner.prompter.text(written.tokens)
    given = "" if form.one_token else form.answer_start
    forced_text = given + reasoner.prompter.text(forced.tokens)
    return AnswerAfter(
        num_thoughts=number,
        text=text,
        answer=scoring.read(text, form=form),
        probability=math.exp(sum(written.log_probabilities)),
        forced=scoring.read(forced_text, form=form),
        forced_probability=math.exp(sum(forced.log_probabilities)),
        known_log_probability=None if known is None else sum(scored.log_probabilities),
        is_right=None if known is None else scoring.is_correct(text, known, form),
        is_forced_right=None if known is None else scoring.is_correct(forced_text, known, form),
    )
