"""Mean effects of interventions over a data set, with confidence intervals and, for patching, the same-answer control.

Values are first averaged over the draws of each problem, then over problems, so the intervals describe the variation
between problems, not between draws. See ``intervene`` for single questions and for the meaning of the controls.
"""

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.generation.decoding import token_id
from coconut_ds.parts import Parts, in_parts
from coconut_ds.probing.baselines import Baseline, Outcome, Trial, baselines_of, outcomes_of
from coconut_ds.probing.cases import OnProgress, Plain, embeddings
from coconut_ds.probing.intervene import mean_thoughts
from coconut_ds.probing.interventions import RANDOM_KINDS, Intervention, Kind, Material, change
from coconut_ds.reasoner import Reasoner
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring

IsRight = Callable[[Outcome | Baseline, int], bool]
"""Whether an outcome, or an unchanged text, is right for the problem with this index."""


@dataclass(frozen=True)
class Effect(Plain):
    """The mean effect of one intervention on one thought over a data set."""

    name: str
    """Name of the intervention; ``patch, same answer`` is the control of ``patch``."""
    thought: int
    """Number of the thought, from 1."""
    later: str
    """``recomputed`` or ``kept``; see ``Intervention.later``."""
    num_problems: int
    """Number of problems that the intervention could be applied to."""
    kept: Mean
    """Share of answers that are the same as in the baseline."""
    change: Mean
    """Mean change of the log probability (natural) of the baseline's text."""
    became_donors: Mean | None
    """Share of answers that equal the donor's answer, which differs from the baseline's; None without such donors."""
    right: Mean | None
    """Share of right answers after the intervention; None if the right answers are not known."""


@dataclass(frozen=True, eq=False)
class _ProblemTrials:
    """The trials of one intervention on one problem."""

    index: int
    """Index of the problem."""
    trials: list[Trial]
    donor_answers: list[str]
    """The answer of each trial's donor; empty if the intervention has no donors."""


@dataclass(frozen=True, eq=False)
class _PlannedEffect:
    """An intervention, or its control, with the trials that measure it."""

    name: str
    intervention: Intervention
    problems: list[_ProblemTrials]
    is_control: bool


@dataclass(frozen=True, eq=False)
class MadeEffect:
    """An intervention, or its control, with the outcomes of its trials, from which effects are computed."""

    planned: _PlannedEffect
    outcomes: list[list[Outcome]]
    """For each problem of ``planned``, the outcome of each of its trials."""

    def effect(self, is_right: IsRight | None, only: Container[int] | None = None) -> Effect | None:
        """The mean effect over problems.

        Args:
            is_right: which answers are right; None: this is not known.
            only: indices of the problems to average over; None: all.

        Returns:
            None if the intervention could be applied to none of the problems.
        """
        chosen = [
            pair
            for pair in zip(self.planned.problems, self.outcomes, strict=True)
            if only is None or pair[0].index in only
        ]
        if not chosen:
            return None
        problems, made = [one for one, _ in chosen], [own for _, own in chosen]
        return _effect(replace(self.planned, problems=problems), made, is_right)


@in_parts
def measure_effects(
    reasoner: Reasoner,
    questions: Sequence[str],
    interventions: Sequence[Intervention],
    known: Sequence[str] | None = None,
    *,
    n_thoughts: int | None = None,
    max_new_tokens: int = 128,
    seed: int = 0,
    progress: OnProgress | None = None,
    scoring: Scoring = EXACT,
) -> Parts[list[Effect]]:
    """Measures the mean effect of each intervention, in order; each ``patch`` is followed by its same-answer control.

    A patch (or its control) is left out if no problem has a suitable donor, for example because all answers are the
    same.

    Args:
        reasoner: the model.
        questions: the questions of the data set; they also serve as each other's donors and as references for means.
        interventions: the changes to make. ``donor`` is ignored: donors are drawn at random for each problem.
        known: the right answers, if they are known.
        n_thoughts: number of thoughts or pauses; None: the checkpoint's number.
        max_new_tokens: length limit of the generated text, in tokens.
        seed: seed of the random choice of donors.
        progress: see ``OnProgress``; counts trials.
        scoring: the convention that decides which answers are right.

    Raises:
        DataError: an intervention changes a thought that no problem has.
    """
    baselines = yield from baselines_of.parts(reasoner, questions, n_thoughts, max_new_tokens)
    is_right = None if known is None else rightness(reasoner, known, scoring)
    made = yield from make_effects.parts(
        reasoner, baselines, interventions, max_new_tokens=max_new_tokens, seed=seed, progress=progress
    )
    return [effect for one in made if (effect := one.effect(is_right)) is not None]


@in_parts
def make_effects(
    reasoner: Reasoner,
    baselines: Sequence[Baseline],
    interventions: Sequence[Intervention],
    *,
    max_new_tokens: int = 128,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Parts[list[MadeEffect]]:
    """Makes the interventions of ``measure_effects``, and their controls, on questions whose baselines are known."""
    planned = yield from _planned_effects(reasoner, baselines, interventions, seed)
    trials = [trial for effect in planned for one in effect.problems for trial in one.trials]
    outcomes = iter((yield from outcomes_of.parts(reasoner, trials, max_new_tokens, progress)))
    return [MadeEffect(one, [[next(outcomes) for _ in own.trials] for own in one.problems]) for one in planned]


def rightness(reasoner: Reasoner, known: Sequence[str], scoring: Scoring = EXACT) -> IsRight:
    """The function that tells whether an outcome of the problem with some index is right; ``known``: right answers."""
    form = reasoner.card.text_format

    def is_right(outcome: Outcome | Baseline, index: int) -> bool:
        answer = known[index]
        # An answer may be empty if it is a model's own, as in a comparison with its unchanged texts.
        known_one = bool(scoring.gold(answer, form))
        return scoring.is_correct(outcome.text, answer, form) if known_one else outcome.answer == answer

    return is_right


def _planned_effects(
    reasoner: Reasoner, baselines: Sequence[Baseline], interventions: Sequence[Intervention], seed: int
) -> Parts[list[_PlannedEffect]]:
    """The interventions and controls that can be applied to at least one problem, with their trials."""
    planned = []
    for intervention in interventions:
        if not any(len(one.fed) >= max(intervention.thought, intervention.other or 1) for one in baselines):
            raise DataError(f"{intervention.name} of thought {intervention.thought}: no problem has this many thoughts")
        trials = yield from _trials(reasoner, baselines, intervention, seed)
        planned.append(_PlannedEffect(intervention.name, intervention, trials, is_control=False))
        if intervention.kind is Kind.PATCH:
            same = yield from _trials(reasoner, baselines, intervention, seed, same_answer=True)
            planned.append(_PlannedEffect(f"{intervention.name}, same answer", intervention, same, is_control=True))
    return [effect for effect in planned if effect.problems]


def _effect(planned: _PlannedEffect, made: list[list[Outcome]], is_right: IsRight | None) -> Effect:
    """Averages the outcomes of an intervention: ``made`` has one list per problem, with one outcome per trial."""
    donors = [one.donor_answers for one in planned.problems]
    became = None
    if any(donors) and not planned.is_control:
        became = mean_of(
            [
                _mean([o.answer == d for o, d in zip(own, answers, strict=True)])
                for own, answers in zip(made, donors, strict=True)
            ]
        )
    right = None
    if is_right is not None:
        right = mean_of(
            [_mean([is_right(o, one.index) for o in own]) for one, own in zip(planned.problems, made, strict=True)]
        )
    return Effect(
        planned.name,
        planned.intervention.thought,
        planned.intervention.later,
        len(planned.problems),
        mean_of([_mean([o.kept for o in own]) for own in made]),
        mean_of([_mean([o.change for o in own]) for own in made]),
        became,
        right,
    )


def _trials(
    reasoner: Reasoner, baselines: Sequence[Baseline], intervention: Intervention, seed: int, same_answer: bool = False
) -> Parts[list[_ProblemTrials]]:
    """The trials for each problem that has the thought to change and, if the intervention needs one, a donor."""
    least = max(intervention.thought, intervention.other or 1)
    means: dict[int, Tensor] = {}
    token = None
    if intervention.token is not None:
        token = embeddings(reasoner, [token_id(reasoner.backbone.tokenizer, intervention.token)])[0].float().cpu()
    found = []
    for index, one in enumerate(baselines):
        if len(one.fed) < least:
            continue
        donors: list[Baseline | None] = [None] * (intervention.draws if intervention.kind in RANDOM_KINDS else 1)
        if intervention.kind is Kind.PATCH:
            donors = list(_donors(baselines, index, intervention, seed, same_answer))
        count = len(one.fed)
        if intervention.kind is Kind.MEAN and count not in means:
            means[count] = mean_thoughts(baselines, count)
        trials = [
            Trial(
                one,
                change(
                    one.case,
                    one.fed,
                    replace(intervention, donor=None),
                    Material(means.get(count), None if donor is None else donor.fed, token),
                    draw,
                    str(index),
                ),
            )
            for draw, donor in enumerate(donors)
        ]
        if trials:
            found.append(_ProblemTrials(index, trials, [donor.answer for donor in donors if donor is not None]))
        yield None
    return found


def _donors(
    baselines: Sequence[Baseline], index: int, intervention: Intervention, seed: int, same_answer: bool
) -> list[Baseline]:
    """Up to ``draws`` random other problems whose answer differs, or is the same if ``same_answer`` is set."""
    own = baselines[index]
    rng = random.Random(f"donor/{seed}/{intervention.seed}/{index}/{same_answer}")
    found: list[Baseline] = []
    for other in rng.sample(range(len(baselines)), len(baselines)):
        one = baselines[other]
        fits = other != index and (one.answer == own.answer) == same_answer and len(one.fed) >= intervention.thought
        if fits:
            found.append(one)
        if len(found) == intervention.draws:
            break
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
