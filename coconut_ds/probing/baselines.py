"""The model's unmodified thoughts and text for a question, and the outcomes after thoughts are changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from coconut_ds.formats import extract_answer
from coconut_ds.parts import Parts, in_parts
from coconut_ds.probing.cases import Case, OnProgress, Plain, prepare, run_requests, scoring_request, writing_request
from coconut_ds.reasoner import Reasoner


@dataclass(frozen=True, eq=False)
class Baseline:
    """What the model feeds back and writes for one question, without any change."""

    case: Case
    fed: Tensor
    """[L, D] the vectors that were fed back (thoughts, after the feed if there is one), or the embeddings of the pause
    tokens; fp32, on the CPU."""
    tokens: tuple[int, ...]
    """Tokens of the generated text."""
    text: str
    answer: str
    """The answer extracted from the text."""
    log_probability: float
    """Log probability (natural) of the tokens."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of a question with changed thoughts."""

    baseline: Baseline
    case: Case
    """The question's case with the changed thoughts."""


@dataclass(frozen=True)
class Outcome(Plain):
    """The result of one trial."""

    text: str
    """The text that the model generates after the change."""
    answer: str
    """The answer extracted from that text."""
    kept: bool
    """Whether the answer is the same as in the baseline."""
    log_probability: float
    """Log probability (natural) that the changed model assigns to the baseline's text."""
    change: float
    """``log_probability`` minus that of the baseline; negative if the change made the baseline's text less likely."""


@in_parts
def baselines_of(
    reasoner: Reasoner, questions: Sequence[str], n_thoughts: int | None = None, max_new_tokens: int = 128
) -> Parts[list[Baseline]]:
    """Runs the model on each question without any change, with greedy decoding."""
    cases = yield from prepare.parts(reasoner, questions, n_thoughts, max_new_tokens)
    made = yield from run_requests.parts(reasoner, [writing_request(case, reasoner, max_new_tokens) for case in cases])
    found = []
    for case, one in zip(cases, made, strict=True):
        assert one.fed is not None
        text = reasoner.prompter.text(one.tokens)
        answer = extract_answer(text, reasoner.card.text_format)
        fed = one.fed.reshape(-1, reasoner.loop.width)
        found.append(Baseline(case, fed, tuple(one.tokens), text, answer, sum(one.log_probabilities)))
    return found


@in_parts
def outcomes_of(
    reasoner: Reasoner, trials: Sequence[Trial], max_new_tokens: int = 128, progress: OnProgress | None = None
) -> Parts[list[Outcome]]:
    """Runs all trials, with continuous batching.

    The baseline's text is scored first. If each of its tokens is still the likeliest, greedy decoding gives the same
    text, so new text is generated only for the other trials.
    """
    scored = yield from run_requests.parts(
        reasoner, [scoring_request(one.case, reasoner, one.baseline.tokens) for one in trials], progress
    )
    changed = [index for index, one in enumerate(scored) if not all(one.is_greedy)]
    rewritten = yield from run_requests.parts(
        reasoner, [writing_request(trials[index].case, reasoner, max_new_tokens) for index in changed]
    )
    texts = {index: reasoner.prompter.text(one.tokens) for index, one in zip(changed, rewritten, strict=True)}
    found = []
    for index, (trial, one) in enumerate(zip(trials, scored, strict=True)):
        baseline, log_probability = trial.baseline, sum(one.log_probabilities)
        text = texts.get(index, baseline.text)
        answer = extract_answer(text, reasoner.card.text_format)
        change = log_probability - baseline.log_probability
        found.append(Outcome(text, answer, answer == baseline.answer, log_probability, change))
        yield None
    return found
