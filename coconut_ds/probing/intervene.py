"""Interventions on the thoughts of one question, each with its controls.

The effect of changing a thought is informative only in comparison with changes whose expected effect is known. The
controls are:

* ``same answer``: the thought is replaced by that of reference questions with the *same* answer. Whatever depends only
  on the answer stays unchanged.
* ``thought j``: the same change is made to each other thought.
* ``token before``: the same change is made to the embedding of the token just before the thoughts (only for kinds that
  need no vector from elsewhere).
* several draws, for random changes; each draw has its own outcome.
* ``pause``: the same change is made in a checkpoint that uses pauses, and compared with its own baseline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.generation.decoding import token_id
from coconut_ds.parts import Parts, in_parts
from coconut_ds.probing.baselines import Baseline, Outcome, Trial, baselines_of, outcomes_of
from coconut_ds.probing.cases import Case, Plain, embeddings
from coconut_ds.probing.interventions import RANDOM_KINDS, Intervention, Kind, Material, change
from coconut_ds.reasoner import Reasoner

NEEDS_NO_MATERIAL = (Kind.ZERO, Kind.NOISE, Kind.RANDOM, Kind.SCALE)
"""Kinds that need no vector from elsewhere, so that they can also be applied to the embedding of a token."""
SAME_ANSWER = "same answer"
"""Name of the control whose donors have the same answer."""

_Options = tuple[int | None, int]
"""Number of thoughts (None: the checkpoint's), and length limit of the text in tokens."""


@dataclass(frozen=True)
class InterventionArm(Plain):
    """One arm of a report: the intervention itself or one of its controls, with the outcome of each draw."""

    name: str
    donors: tuple[str, ...]
    """The questions whose thoughts were used, one per draw; empty if the arm has no donors."""
    donor_answers: tuple[str, ...]
    """The model's answers to the donor questions."""
    outcomes: tuple[Outcome, ...]
    """One outcome per draw."""
    kept: float
    """Share of draws whose answer is the same as in the baseline."""
    mean_change: float
    """Mean change of the log probability (natural) of the baseline's text."""
    became_donors: float | None = None
    """Share of draws whose answer is the donor's; None without donors, and if donors have the baseline's answer."""


@dataclass(frozen=True)
class InterventionReport(Plain):
    """An intervention on one question: the baseline, the effect, and the controls."""

    question: str
    intervention: Intervention
    text: str
    """The text that the model generates without the intervention (the baseline)."""
    answer: str
    """The answer extracted from the baseline's text."""
    log_probability: float
    """Log probability (natural) of the baseline's text."""
    effect: InterventionArm
    controls: tuple[InterventionArm, ...]
    """The controls that are possible for this intervention and the given references."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """The cases of one arm, before they are run."""

    name: str
    cases: list[Case]
    donors: list[Baseline]
    """One donor per case; empty if the arm has no donors."""


@in_parts
def intervene(
    reasoner: Reasoner,
    question: str,
    interventions: Intervention | Sequence[Intervention],
    *,
    references: Sequence[str] = (),
    pause: Reasoner | None = None,
    n_thoughts: int | None = None,
    max_new_tokens: int = 128,
    with_controls: bool = True,
) -> Parts[list[InterventionReport]]:
    """Runs interventions on the thoughts of one question and returns a report on each.

    All interventions and their controls, except ``pause``, run in the same continuous batch.

    Args:
        reasoner: the model.
        question: the question whose thoughts are changed.
        interventions: one or several.
        references: other questions, for means, donors and the same-answer control.
        pause: a checkpoint that uses pauses, for the ``pause`` control.
        n_thoughts: number of thoughts or pauses; None: the checkpoint's number.
        max_new_tokens: length limit of the generated text, in tokens.
        with_controls: False leaves out all controls except ``pause``, which is faster for comparing many interventions.

    Raises:
        DataError: the thought to change does not exist, or ``mean`` or ``patch`` has no suitable reference.
    """
    requested = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    options = (n_thoughts, max_new_tokens)
    donors = [one.donor for one in requested if one.donor is not None]
    baseline, known = yield from _baselines(reasoner, question, [*references, *donors], options)
    pool = [known[one] for one in references if one != question]
    plans = [_plans(reasoner, baseline, one, pool, known) for one in requested]
    plans = plans if with_controls else [own[:1] for own in plans]
    trials = [Trial(baseline, case) for own in plans for plan in own for case in plan.cases]
    outcomes = iter((yield from outcomes_of.parts(reasoner, trials, max_new_tokens)))
    reports = []
    for intervention, own in zip(requested, plans, strict=True):
        effect, *controls = [_arm(plan, outcomes) for plan in own]
        if pause is not None:
            control = yield from _pause_control(pause, effect, question, intervention, references, options)
            controls.append(control)
        reports.append(_report(baseline, intervention, effect, controls))
    return reports


def _report(
    baseline: Baseline, intervention: Intervention, effect: InterventionArm, controls: Sequence[InterventionArm]
) -> InterventionReport:
    question, text, answer = baseline.case.question, baseline.text, baseline.answer
    return InterventionReport(question, intervention, text, answer, baseline.log_probability, effect, tuple(controls))


def _baselines(
    reasoner: Reasoner, question: str, others: Sequence[str], options: _Options
) -> Parts[tuple[Baseline, dict[str, Baseline]]]:
    """The baseline of the question, and the baselines of all questions (including ``others``) by question.

    Raises:
        DataError: the model has no thoughts on the question.
    """
    different = [one for one in dict.fromkeys(others) if one != question]
    baselines = yield from baselines_of.parts(reasoner, [question, *different], *options)
    if not baselines[0].case.num_latents:
        raise DataError("the model did not think, so there is no thought to change; set n_thoughts to 1 or more")
    return baselines[0], {one.case.question: one for one in baselines}


def mean_thoughts(baselines: Sequence[Baseline], count: int) -> Tensor:
    """[count, D] the mean of each of the first ``count`` thoughts, over the baselines that have that many."""
    return torch.stack([one.fed[:count] for one in baselines if len(one.fed) >= count]).mean(dim=0)


def _plans(
    reasoner: Reasoner, baseline: Baseline, intervention: Intervention, pool: list[Baseline], known: dict[str, Baseline]
) -> list[_Plan]:
    """Plans the intervention itself, then its controls.

    Args:
        reasoner: the model.
        baseline: the question's baseline.
        intervention: the intervention.
        pool: baselines of the reference questions.
        known: baselines of all questions, by question.
    """
    count = baseline.case.num_latents
    long_enough = [one for one in pool if len(one.fed) >= count]
    if intervention.kind is Kind.MEAN and not long_enough:
        raise DataError("kind=mean: needs reference questions; set data= to problems, or pass references")
    donors = _donors(intervention, baseline, long_enough, known)
    mean = mean_thoughts(long_enough, count) if long_enough else None
    token = _token(reasoner, intervention)
    plans = [_plan(intervention.name, baseline, intervention, Material(mean, token=token), donors)]
    same = [one for one in long_enough if one.answer == baseline.answer][: intervention.draws]
    if same:
        patch = Intervention(Kind.PATCH, intervention.thought, later=intervention.later)
        plans.append(_plan(SAME_ANSWER, baseline, patch, Material(), same))
    for number in range(1, count + 1):
        if number not in (intervention.thought, intervention.other):
            elsewhere = replace(intervention, thought=number)
            plans.append(_plan(f"thought {number}", baseline, elsewhere, Material(mean, token=token), donors))
    # If all thoughts are computed at once, one more latent position would need one more pass.
    one_by_one = reasoner.prompter.parallel is None
    if intervention.kind in NEEDS_NO_MATERIAL and one_by_one and baseline.case.prompt.first_thought > 1:
        plans.append(_token_before(reasoner, baseline, intervention))
    return plans


def _donors(
    intervention: Intervention, baseline: Baseline, pool: list[Baseline], known: dict[str, Baseline]
) -> list[Baseline]:
    """The donors of a patch, one per draw: the named donor, or references whose answer differs."""
    if intervention.kind is not Kind.PATCH:
        return []
    if intervention.donor is not None:
        if len(known[intervention.donor].fed) < intervention.thought:
            raise DataError(f"donor: the model has no thought {intervention.thought} on {intervention.donor!r}")
        return [known[intervention.donor]]
    donors = [one for one in pool if one.answer != baseline.answer][: intervention.draws]
    if not donors:
        raise DataError(
            "kind=patch: needs another question; set donor, or give references with an answer other than "
            f"{baseline.answer!r}"
        )
    return donors


def _token(reasoner: Reasoner, intervention: Intervention) -> Tensor | None:
    """[D] the input embedding of the intervention's token, if it has one; fp32, on the CPU."""
    if intervention.token is None:
        return None
    return embeddings(reasoner, [token_id(reasoner.backbone.tokenizer, intervention.token)])[0].float().cpu()


def _plan(
    name: str, baseline: Baseline, intervention: Intervention, material: Material, donors: list[Baseline]
) -> _Plan:
    """Plans one case per donor if there are donors, else one per draw."""
    case, own, salt = baseline.case, baseline.fed, baseline.case.question
    if donors:
        return _Plan(
            name, [change(case, own, intervention, replace(material, donor=one.fed)) for one in donors], donors
        )
    draws = intervention.draws if intervention.kind in RANDOM_KINDS else 1
    return _Plan(name, [change(case, own, intervention, material, draw, salt) for draw in range(draws)], [])


def _token_before(reasoner: Reasoner, baseline: Baseline, intervention: Intervention) -> _Plan:
    """Plans the ``token before`` control: the change is made to the embedding of the last token before the thoughts."""
    case = baseline.case
    vector = embeddings(reasoner, [case.prompt.input_ids[case.prompt.first_thought - 1]]).float().cpu()
    wider = replace(baseline, case=case.widened(vector), fed=torch.cat([vector, baseline.fed]))
    return _plan("token before", wider, replace(intervention, thought=1), Material(), [])


def _arm(plan: _Plan, outcomes: Iterator[Outcome]) -> InterventionArm:
    """Takes the plan's outcomes, one per case, from the iterator and summarises them."""
    made = tuple(next(outcomes) for _ in plan.cases)
    donors = tuple(one.case.question for one in plan.donors)
    answers = tuple(one.answer for one in plan.donors)
    kept = sum(one.kept for one in made) / len(made)
    became = None
    if answers and plan.name != SAME_ANSWER:
        became = sum(one.answer == answer for one, answer in zip(made, answers, strict=True)) / len(made)
    change = sum(one.change for one in made) / len(made)
    return InterventionArm(plan.name, donors, answers, made, kept, change, became)


def _pause_control(
    pause: Reasoner,
    effect: InterventionArm,
    baseline_question: str,
    intervention: Intervention,
    references: Sequence[str],
    options: _Options,
) -> Parts[InterventionArm]:
    """Runs the ``pause`` control: the same change in a checkpoint that uses pauses.

    That checkpoint feeds the same vectors for every question, so patching changes nothing in it.
    """
    questions = list(dict.fromkeys([baseline_question, *references, *effect.donors]))
    baselines = yield from baselines_of.parts(pause, questions, *options)
    known = {one.case.question: one for one in baselines}
    baseline, count = known[baseline_question], known[baseline_question].case.num_latents
    pool = [known[one] for one in references if one != baseline_question and len(known[one].fed) >= count]
    material = Material(mean_thoughts(pool, count) if pool else None, token=_token(pause, intervention))
    plan = _plan("pause", baseline, intervention, material, [known[one] for one in effect.donors])
    outcomes = yield from outcomes_of.parts(pause, [Trial(baseline, case) for case in plan.cases], options[1])
    return _arm(plan, iter(outcomes))
