"""Mean effects of interventions, against the effects on single questions."""

import pytest
from making_probing import QUESTIONS, make_reasoner

from coconut_ds.errors import DataError
from coconut_ds.probing.baselines import baselines_of
from coconut_ds.probing.effects import measure_effects
from coconut_ds.probing.intervene import intervene
from coconut_ds.probing.interventions import Intervention, Kind


@pytest.fixture(scope="module")
def reasoner():
    return make_reasoner("llama")


def test_a_mean_effect_is_the_mean_of_single_ones(reasoner):
    """Each question on its own through ``intervene``; donors have another answer, or the same for the control."""
    alone = (Intervention(Kind.ZERO, 2), Intervention(Kind.SWAP, 1, other=3), Intervention(Kind.ZERO, 1, later="kept"))
    answers = {one.case.question: one.answer for one in baselines_of(reasoner, QUESTIONS, max_new_tokens=3)}
    known = [answers[question] if index % 2 else "nothing" for index, question in enumerate(QUESTIONS)]
    found = measure_effects(reasoner, QUESTIONS, alone, known, max_new_tokens=3)
    for what, effect in zip(alone, found, strict=True):
        outcomes = [intervene(reasoner, q, what, max_new_tokens=3)[0].effect.outcomes[0] for q in QUESTIONS]
        assert (effect.name, effect.thought, effect.num_problems) == (what.name, what.thought, len(QUESTIONS))
        assert effect.kept.estimate == sum(one.kept for one in outcomes) / len(outcomes)
        mean = sum(one.change for one in outcomes) / len(outcomes)
        assert effect.change.estimate == pytest.approx(mean, abs=1e-3)
        right = sum(one.answer == answer for one, answer in zip(outcomes, known, strict=True)) / len(outcomes)
        assert effect.right.estimate == right
    patched = measure_effects(reasoner, QUESTIONS, [Intervention(Kind.PATCH, 3, draws=9)], max_new_tokens=3)
    for effect, same in zip(patched, (False, True), strict=False):
        kept, changes, became = [], [], []
        for question in QUESTIONS:
            donors = [q for q in QUESTIONS if q != question and (answers[q] == answers[question]) == same]
            made = [
                intervene(reasoner, question, Intervention(Kind.PATCH, 3, donor=donor), max_new_tokens=3)[0].effect
                for donor in donors
            ]
            if made:
                kept.append(sum(one.outcomes[0].kept for one in made) / len(made))
                changes.append(sum(one.outcomes[0].change for one in made) / len(made))
                became.append(sum(one.outcomes[0].answer == one.donor_answers[0] for one in made) / len(made))
        assert effect.num_problems == len(kept)
        assert effect.kept.estimate == pytest.approx(sum(kept) / len(kept))
        assert effect.change.estimate == pytest.approx(sum(changes) / len(changes), abs=1e-3)
        assert (
            effect.became_donors is None
            if same
            else effect.became_donors.estimate == pytest.approx(sum(became) / len(became))
        )


def test_noise_is_drawn_anew_for_each_problem_and_progress_can_end_the_work(reasoner):
    noise = Intervention(Kind.NOISE, 1, draws=3)
    first = measure_effects(reasoner, QUESTIONS, [noise], max_new_tokens=3)[0]
    assert measure_effects(reasoner, QUESTIONS, [noise], max_new_tokens=3)[0] == first
    assert measure_effects(reasoner, QUESTIONS[:3], [noise], max_new_tokens=3)[0] != first

    class Ended(Exception):
        pass

    def end(done: int, total: int) -> None:
        assert total == 15
        if done == 4:
            raise Ended

    with pytest.raises(Ended):
        measure_effects(reasoner, QUESTIONS, [noise], max_new_tokens=3, progress=end)
    with pytest.raises(DataError, match="zero of thought 7: no problem has this many"):
        measure_effects(reasoner, QUESTIONS, [Intervention(Kind.ZERO, 7)], max_new_tokens=3)
    # A single question has no donor.
    assert measure_effects(reasoner, QUESTIONS[:1], [Intervention(Kind.PATCH, 1)], max_new_tokens=3) == []
