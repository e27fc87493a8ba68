"""Mean effects of interventions over a data set, with intervals, and the control with the same answer beside each.

One value a problem (the mean over its draws), then means over problems: problems, not draws, are what intervals speak
of. See ``intervene`` for single questions and for what controls are.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.formats import extract_answer
from coconut_ds.generation.decoding import token_id
from coconut_ds.probing.baselines import Baseline, Outcome, Trial, baselines_of, outcomes_of
from coconut_ds.probing.cases import OnProgress, Plain, embeddings
from coconut_ds.probing.intervene import mean_thoughts
from coconut_ds.probing.interventions import DRAWN, Intervention, Kind, Material, change
from coconut_ds.reasoner import Reasoner


@dataclass(frozen=True)
class Effect(Plain):
    """One change of one thought over a data set."""

    name: str
    """Of the change; ``patch, same answer`` is the control of ``patch``."""
    thought: int
    later: str
    num_problems: int
    """Those on which it could be done."""
    kept: Mean
    """Share of answers that stay."""
    change: Mean
    """Of the log probability of the untouched text."""
    became_donors: Mean | None
    """Share of answers that become the donor's, which is another one; None where there is none."""
    right: Mean | None
    """Share of right answers after the change; None where they are not known."""


@dataclass(frozen=True, eq=False)
class _Work:
    """One problem's trials of one change."""

    index: int
    trials: list[Trial]
    donor_answers: list[str]


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
) -> list[Effect]:
    """The mean effect of each intervention, in their order; each ``patch`` is followed by its control.

    A patch is left out where no problem has a donor: where all answers are the same, say, or all different.

    Args:
        reasoner: the model.
        questions: of the data set; they are each other's donors and references.
        interventions: what to do; ``donor`` is drawn anew for each problem.
        known: right answers, where they are known.
        n_thoughts: thoughts or pauses; None: the checkpoint's number.
        max_new_tokens: longest text.
        seed: of the choice of donors.
        progress: see ``Progress``; counts trials.

    Raises:
        DataError: no problem has such a thought.
    """
    baselines = baselines_of(reasoner, questions, n_thoughts, max_new_tokens)
    form = reasoner.card.text_format
    answers = None if known is None else [extract_answer(answer, form) for answer in known]
    asked: list[tuple[str, Intervention, list[_Work]]] = []
    for what in interventions:
        if not any(len(one.fed) >= max(what.thought, what.other or 1) for one in baselines):
            raise DataError(f"{what.name} of thought {what.thought}: no problem has so many thoughts")
        asked.append((what.name, what, _work(reasoner, baselines, what, seed)))
        if what.kind is Kind.PATCH:
            asked.append((f"{what.name}, same answer", what, _work(reasoner, baselines, what, seed, same_answer=True)))
    asked = [one for one in asked if one[2]]
    trials = [trial for _, _, work in asked for one in work for trial in one.trials]
    outcomes = iter(outcomes_of(reasoner, trials, max_new_tokens, progress))
    found = []
    for name, what, work in asked:
        made = [[next(outcomes) for _ in one.trials] for one in work]
        found.append(_effect(name, what, work, made, answers))
    return found


def _effect(
    name: str, what: Intervention, work: list[_Work], made: list[list[Outcome]], known: Sequence[str] | None
) -> Effect:
    donors = [one.donor_answers for one in work]
    became = None
    if any(donors) and not name.endswith("same answer"):
        became = mean_of(
            [
                _mean([o.answer == d for o, d in zip(own, answers, strict=True)])
                for own, answers in zip(made, donors, strict=True)
            ]
        )
    right = None
    if known is not None:
        right = mean_of(
            [_mean([o.answer == known[one.index] for o in own]) for one, own in zip(work, made, strict=True)]
        )
    return Effect(
        name,
        what.thought,
        what.later,
        len(work),
        mean_of([_mean([o.kept for o in own]) for own in made]),
        mean_of([_mean([o.change for o in own]) for own in made]),
        became,
        right,
    )


def _work(
    reasoner: Reasoner, baselines: Sequence[Baseline], what: Intervention, seed: int, same_answer: bool = False
) -> list[_Work]:
    """What is done to each problem that has such a thought and, where one is needed, a donor."""
    least = max(what.thought, what.other or 1)
    means: dict[int, Tensor] = {}
    token = None
    if what.token is not None:
        token = embeddings(reasoner, [token_id(reasoner.backbone.tokenizer, what.token)])[0].float().cpu()
    work = []
    for index, one in enumerate(baselines):
        if len(one.fed) < least:
            continue
        donors: list[Baseline | None] = [None] * (what.draws if what.kind in DRAWN else 1)
        if what.kind is Kind.PATCH:
            donors = list(_donors(baselines, index, what, seed, same_answer))
        count = len(one.fed)
        if what.kind is Kind.MEAN and count not in means:
            means[count] = mean_thoughts(baselines, count)
        trials = [
            Trial(
                one,
                change(
                    one.case,
                    one.fed,
                    replace(what, donor=None),
                    Material(means.get(count), None if donor is None else donor.fed, token),
                    draw,
                    str(index),
                ),
            )
            for draw, donor in enumerate(donors)
        ]
        if trials:
            work.append(_Work(index, trials, [donor.answer for donor in donors if donor is not None]))
    return work


def _donors(
    baselines: Sequence[Baseline], index: int, what: Intervention, seed: int, same_answer: bool
) -> list[Baseline]:
    """Up to ``draws`` others whose answer is another one, or the same."""
    own = baselines[index]
    rng = random.Random(f"donor/{seed}/{what.seed}/{index}/{same_answer}")
    found: list[Baseline] = []
    for other in rng.sample(range(len(baselines)), len(baselines)):
        one = baselines[other]
        fits = other != index and (one.answer == own.answer) == same_answer and len(one.fed) >= what.thought
        if fits:
            found.append(one)
        if len(found) == what.draws:
            break
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
