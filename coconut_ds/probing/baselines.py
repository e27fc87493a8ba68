"""What an untouched model thinks and writes, and what becomes of it once thoughts were changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from coconut_ds.formats import extract_answer
from coconut_ds.probing.cases import Case, OnProgress, Plain, prepare, run_requests, score, writing_request
from coconut_ds.reasoner import Reasoner


@dataclass(frozen=True, eq=False)
class Baseline:
    """One question, left alone."""

    case: Case
    fed: Tensor
    """[L, D] its thoughts, or the pauses' embeddings; on the CPU in fp32."""
    tokens: tuple[int, ...]
    text: str
    answer: str
    log_probability: float
    """Of the tokens, natural logarithm."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A question with changed thoughts."""

    baseline: Baseline
    case: Case


@dataclass(frozen=True)
class Outcome(Plain):
    """What the model wrote after a change."""

    text: str
    answer: str
    kept: bool
    """Whether the answer is that of the untouched model."""
    log_probability: float
    """Of the text that the untouched model writes; natural logarithm."""
    change: float
    """Of that log probability: below 0 where the text has become less likely."""


def baselines_of(
    reasoner: Reasoner, questions: Sequence[str], n_thoughts: int | None = None, max_new_tokens: int = 128
) -> list[Baseline]:
    """What the model thinks and writes by itself, greedily."""
    cases = prepare(reasoner, questions, n_thoughts, max_new_tokens)
    made = run_requests(reasoner, [writing_request(case, reasoner, max_new_tokens) for case in cases])
    found = []
    for case, one in zip(cases, made, strict=True):
        assert one.thoughts is not None
        text = reasoner.prompter.text(one.tokens)
        answer = extract_answer(text, reasoner.card.text_format)
        fed = one.thoughts.reshape(-1, reasoner.loop.width)
        found.append(Baseline(case, fed, tuple(one.tokens), text, answer, sum(one.log_probabilities)))
    return found


def outcomes_of(
    reasoner: Reasoner, trials: Sequence[Trial], max_new_tokens: int = 128, progress: OnProgress | None = None
) -> list[Outcome]:
    """What becomes of each trial, all in continuous batches.

    The untouched text is scored first; where each of its tokens is still the likeliest it is what the model writes, and
    only the others are written anew.
    """
    scored = run_requests(reasoner, [score(one.case, reasoner, one.baseline.tokens) for one in trials], progress)
    moved = [index for index, one in enumerate(scored) if not all(one.is_greedy)]
    anew = run_requests(reasoner, [writing_request(trials[index].case, reasoner, max_new_tokens) for index in moved])
    texts = {index: reasoner.prompter.text(one.tokens) for index, one in zip(moved, anew, strict=True)}
    found = []
    for index, (trial, one) in enumerate(zip(trials, scored, strict=True)):
        baseline, log_probability = trial.baseline, sum(one.log_probabilities)
        text = texts.get(index, baseline.text)
        answer = extract_answer(text, reasoner.card.text_format)
        change = log_probability - baseline.log_probability
        found.append(Outcome(text, answer, answer == baseline.answer, log_probability, change))
    return found
