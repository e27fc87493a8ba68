"""Interventions on one question, each with its controls beside it.

An effect says something about a thought only next to what the same change does where it should do nothing. Controls:

* ``same answer``: that thought of reference questions with the *same* answer; what hangs on the answer alone stays.
* ``thought j``: the same change of each other thought.
* ``token before``: the same change of the input just before the thoughts, which is a token (kinds that need nothing
  but a vector to change).
* several draws of what is random, each with its outcome.
* ``pause``: the same change in a checkpoint that pauses instead of thinking, against what that one writes untouched.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.generation.decoding import token_id
from coconut_ds.probing.baselines import Baseline, Outcome, Trial, baselines_of, outcomes_of
from coconut_ds.probing.cases import Case, Plain, embeddings
from coconut_ds.probing.interventions import DRAWN, Intervention, Kind, Material, change
from coconut_ds.reasoner import Reasoner

ANYWHERE = (Kind.ZERO, Kind.NOISE, Kind.RANDOM, Kind.SCALE)
"""Kinds that can be done to a token's embedding as well."""


_Options = tuple[int | None, int]
"""Number of thoughts, and longest text."""


@dataclass(frozen=True)
class InterventionArm(Plain):
    """One change, or one of its controls, with the outcome of each draw."""

    name: str
    donors: tuple[str, ...]
    """Questions whose thoughts were taken, one a draw; empty where none was."""
    donor_answers: tuple[str, ...]
    """What the model answers to them."""
    outcomes: tuple[Outcome, ...]
    kept: float
    """Share of draws that leave the answer."""
    mean_change: float
    """Of the log probability of the untouched text."""


@dataclass(frozen=True)
class InterventionReport(Plain):
    """A change of a thought, what came of it, and its controls."""

    question: str
    intervention: Intervention
    text: str
    """Untouched."""
    answer: str
    """Untouched."""
    log_probability: float
    """Of the untouched text."""
    effect: InterventionArm
    controls: tuple[InterventionArm, ...]
    """Those that are possible with what was given."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """An arm before it was run."""

    name: str
    cases: list[Case]
    donors: list[Baseline]


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
) -> list[InterventionReport]:
    """A report on each intervention, all of them run together.

    Args:
        reasoner: the model.
        question: whose thoughts are changed.
        interventions: one or several.
        references: other questions, for means, donors and the control with the same answer.
        pause: a checkpoint that pauses, for the control of that name.
        n_thoughts: thoughts or pauses; None: the checkpoint's number.
        max_new_tokens: longest text.
        with_controls: False leaves them out, which is faster where many changes stand beside each other.

    Raises:
        DataError: there is no such thought, or ``mean`` or ``patch`` has no references to take from.
    """
    asked = [interventions] if isinstance(interventions, Intervention) else list(interventions)
    donors = [one.donor for one in asked if one.donor is not None]
    others = [one for one in dict.fromkeys([*references, *donors]) if one != question]
    all_of_them = baselines_of(reasoner, [question, *others], n_thoughts, max_new_tokens)
    baseline, known = all_of_them[0], {one.case.question: one for one in all_of_them}
    if not baseline.case.num_latents:
        raise DataError("the model did not think, so there is no thought to change; set n_thoughts to 1 or more")
    pool = [known[one] for one in references if one != question]
    plans = [_plans(reasoner, baseline, what, pool, known)[: None if with_controls else 1] for what in asked]
    trials = [Trial(baseline, case) for arms in plans for arm in arms for case in arm.cases]
    outcomes = iter(outcomes_of(reasoner, trials, max_new_tokens))
    reports = []
    for what, arms in zip(asked, plans, strict=True):
        effect, *controls = [_arm(plan, outcomes) for plan in arms]
        if pause is not None:
            controls.append(_in_pauses(pause, effect, question, what, references, (n_thoughts, max_new_tokens)))
        reports.append(
            InterventionReport(
                question, what, baseline.text, baseline.answer, baseline.log_probability, effect, tuple(controls)
            )
        )
    return reports


def mean_thoughts(baselines: Sequence[Baseline], count: int) -> Tensor:
    """[L, D] means over those that have at least ``count`` thoughts."""
    return torch.stack([one.fed[:count] for one in baselines if len(one.fed) >= count]).mean(dim=0)


def _plans(
    reasoner: Reasoner, baseline: Baseline, what: Intervention, pool: list[Baseline], known: dict[str, Baseline]
) -> list[_Plan]:
    """The change itself, then its controls."""
    count = baseline.case.num_latents
    long_enough = [one for one in pool if len(one.fed) >= count]
    if what.kind is Kind.MEAN and not long_enough:
        raise DataError("kind=mean: needs reference questions; give references (a file of problems)")
    donors = _donors(what, baseline, long_enough, known)
    mean = mean_thoughts(long_enough, count) if long_enough else None
    token = _token(reasoner, what)
    plans = [_plan(what.name, baseline, what, Material(mean, token=token), donors)]
    same = [one for one in long_enough if one.answer == baseline.answer][: what.draws]
    if same:
        patch = Intervention(Kind.PATCH, what.thought, later=what.later)
        plans.append(_plan("same answer", baseline, patch, Material(), same))
    for number in range(1, count + 1):
        if number not in (what.thought, what.other):
            elsewhere = replace(what, thought=number)
            plans.append(_plan(f"thought {number}", baseline, elsewhere, Material(mean, token=token), donors))
    # Where thoughts come all at once, one position more would take one pass more.
    one_by_one = reasoner.prompter.iterations is None
    if what.kind in ANYWHERE and one_by_one and baseline.case.prompt.first_thought > 1:
        plans.append(_token_before(reasoner, baseline, what))
    return plans


def _donors(what: Intervention, baseline: Baseline, pool: list[Baseline], known: dict[str, Baseline]) -> list[Baseline]:
    if what.kind is not Kind.PATCH:
        return []
    if what.donor is not None:
        if len(known[what.donor].fed) < what.thought:
            raise DataError(f"donor: the model has no thought {what.thought} on {what.donor!r}")
        return [known[what.donor]]
    donors = [one for one in pool if one.answer != baseline.answer][: what.draws]
    if not donors:
        raise DataError(
            "kind=patch: needs another question; set donor, or give references with another answer than "
            f"{baseline.answer!r}"
        )
    return donors


def _token(reasoner: Reasoner, what: Intervention) -> Tensor | None:
    if what.token is None:
        return None
    return embeddings(reasoner, [token_id(reasoner.backbone.tokenizer, what.token)])[0].float().cpu()


def _plan(name: str, baseline: Baseline, what: Intervention, material: Material, donors: list[Baseline]) -> _Plan:
    case, own, salt = baseline.case, baseline.fed, baseline.case.question
    if donors:
        return _Plan(name, [change(case, own, what, replace(material, donor=one.fed)) for one in donors], donors)
    draws = what.draws if what.kind in DRAWN else 1
    return _Plan(name, [change(case, own, what, material, draw, salt) for draw in range(draws)], [])


def _token_before(reasoner: Reasoner, baseline: Baseline, what: Intervention) -> _Plan:
    """The change, done to the embedding of the last token before the thoughts."""
    case = baseline.case
    vector = embeddings(reasoner, [case.prompt.input_ids[case.prompt.first_thought - 1]]).float().cpu()
    wider = replace(baseline, case=case.widened(vector), fed=torch.cat([vector, baseline.fed]))
    return _plan("token before", wider, replace(what, thought=1), Material(), [])


def _arm(plan: _Plan, outcomes: Iterator[Outcome]) -> InterventionArm:
    made = tuple(next(outcomes) for _ in plan.cases)
    donors = tuple(one.case.question for one in plan.donors)
    answers = tuple(one.answer for one in plan.donors)
    kept = sum(one.kept for one in made) / len(made)
    return InterventionArm(plan.name, donors, answers, made, kept, sum(one.change for one in made) / len(made))


def _in_pauses(
    pause: Reasoner,
    effect: InterventionArm,
    baseline_question: str,
    what: Intervention,
    references: Sequence[str],
    options: _Options,
) -> InterventionArm:
    """The same in a checkpoint that pauses. All its questions are fed the same, so patching changes nothing there."""
    questions = list(dict.fromkeys([baseline_question, *references, *effect.donors]))
    known = {one.case.question: one for one in baselines_of(pause, questions, *options)}
    baseline, count = known[baseline_question], known[baseline_question].case.num_latents
    pool = [known[one] for one in references if one != baseline_question and len(known[one].fed) >= count]
    material = Material(mean_thoughts(pool, count) if pool else None, token=_token(pause, what))
    plan = _plan("pause", baseline, what, material, [known[one] for one in effect.donors])
    outcomes = outcomes_of(pause, [Trial(baseline, case) for case in plan.cases], options[1])
    return _arm(plan, iter(outcomes))
